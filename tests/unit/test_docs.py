"""The pages of docs hang together: links lead somewhere, each page is in the navigation, tables are complete."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from llmtune.api import FineTuneConfig, LLMFineTuner
from llmtune.config.resources import project_options
from llmtune.flags import FLAGS

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as MkDocs and most forges make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    """Relative links of a page that lead nowhere."""
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match["target"]
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            yield f"{page.relative_to(page.anchor)}: {target}"


def test_links_lead_somewhere() -> None:
    assert len(PAGES) > 15
    assert [link for page in PAGES for link in broken_links(page)] == []


def test_a_broken_link_is_found(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A (b) `c`\n[x](#a-b-c) [y](#d) [z](other.md) [w](https://example.org)\n", encoding="utf-8")
    assert [link.rpartition(" ")[2] for link in broken_links(page)] == ["#d", "other.md"]


def test_every_page_is_in_the_navigation_and_nothing_else() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = {name for entry in nav for value in entry.values() for name in _pages(value)}
    assert named == {page.name for page in DOCS.glob("*.md")}


def _pages(value: str | list[dict[str, str]]) -> list[str]:
    return [value] if isinstance(value, str) else [name for entry in value for name in entry.values()]


def test_the_site_asks_nothing_of_the_network() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert config["plugins"] == ["search"]
    assert [name for name in config["extra_css"] + config.get("extra_javascript", []) if "://" in name] == []


def test_every_flag_is_in_the_table_of_commands() -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(--[\w-]+)` \| `([\w.]+)` \|", page, flags=re.MULTILINE)) == dict(FLAGS)


def test_the_python_page_has_every_argument_and_method() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    methods = [name for name in vars(LLMFineTuner) if not name.startswith("_")]
    assert [field.name for field in fields(FineTuneConfig) if f"| `{field.name}` |" not in page] == []
    assert [name for name in methods if not re.search(rf"^\| `(LLMFineTuner\.)?{name}[`(]", page, re.MULTILINE)] == []


def test_ready_made_experiments_are_there() -> None:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"experiment=(\w+)", page)) <= set(project_options("experiment"))
