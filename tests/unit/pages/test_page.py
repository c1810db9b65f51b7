"""A page stands alone, is whole, and fits a narrow screen."""

import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from llmtune.pages.page import Figure, columns, figures, listing, quiet, section, table, verdict, write_page

pytestmark = pytest.mark.fast

VOID = {"meta", "wbr"}
HOSTILE = '</section></style><script>alert("x")</script><img src=http://a.b/c>\x00\u202e'


class Checked(HTMLParser):
    """Reads a page; every element that is opened is closed, in order."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.wrong: list[str] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def page(tmp_path: Path, *content: str) -> tuple[str, Checked]:
    file = tmp_path / "page.html"
    write_page(file, f"Title {HOSTILE}", HOSTILE, *content)
    markup = file.read_text(encoding="utf-8")
    return markup, Checked(markup)


def test_a_page_is_whole_and_hostile_text_stays_text(tmp_path: Path) -> None:
    markup, read = page(
        tmp_path,
        section(HOSTILE, HOSTILE, note=HOSTILE),
        verdict("problem", HOSTILE, [HOSTILE]),
        figures(Figure(HOSTILE, HOSTILE, HOSTILE)),
        table(HOSTILE, [HOSTILE], [[HOSTILE]]),
        listing([HOSTILE] * 9),
        columns(HOSTILE),
        quiet([(HOSTILE, HOSTILE)]),
    )
    assert markup.startswith("<!doctype html>\n<html lang=")
    assert (read.open, read.wrong) == ([], [])
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in read.tags}
    assert not {"src", "href", "onload", "onclick"} & {name for _, attributes in read.tags for name in attributes}
    assert "\x00" not in markup and "\u202e" not in markup
    # heading, title element, lead; section 3; verdict 2; figure 3; caption, head and cell; listing 9; column; quiet 2
    assert read.text.count('alert("x")') == 3 + 3 + 2 + 3 + 3 + 9 + 1 + 2


def test_the_check_finds_what_is_not_closed() -> None:
    assert Checked("<p><b>x</p></b>").wrong == ["p", "b"]
    assert Checked("<p><b>x").open == ["p", "b"]


def test_a_page_fetches_nothing(tmp_path: Path) -> None:
    markup, read = page(tmp_path)
    meta = [attributes for tag, attributes in read.tags if tag == "meta"]
    policy = next(a["content"] for a in meta if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    style = resources.files("llmtune.pages").joinpath("page.css").read_text(encoding="utf-8")
    assert style in markup
    assert not re.search(r"@import|https?:|url\((?!#)", style)
    assert "</style" not in style
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in meta


def test_the_style_has_a_dark_a_narrow_and_a_printed_form() -> None:
    style = resources.files("llmtune.pages").joinpath("page.css").read_text(encoding="utf-8")
    assert "@media screen and (prefers-color-scheme: dark)" in style
    assert "@media (max-width:" in style and "@media print" in style
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    names = [set(re.findall(r"(--[\w-]+):", block)) for block in (light, dark)]
    assert len(names[0]) > 15 and names[0] == names[1], "a colour lacks its dark form"
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= names[0]


def luminance(colour: str) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize(
    ("ink", "ground", "least"),
    [
        ("ink", "paper", 7),
        ("soft", "paper", 4.5),
        ("soft", "ground", 4.5),
        ("soft", "track", 4.5),
        ("learnt-ink", "learnt-ground", 7),
        ("problem", "problem-ground", 4.5),
        ("good", "good-ground", 4.5),
        ("cut", "paper", 4.5),
        ("a", "paper", 3),
        ("c", "paper", 3),
        ("d", "paper", 3),
    ],
)
def test_text_and_bars_stand_out_from_their_ground(form: int, ink: str, ground: str, least: float) -> None:
    style = resources.files("llmtune.pages").joinpath("page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[form]))
    above, below = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
    assert (above + 0.05) / (below + 0.05) >= least


def test_a_table_scrolls_in_its_own_box() -> None:
    shown = table("splits", ["split", "rows"], [["train", "1,204"]])
    assert shown.startswith('<div class="scroll" role="region" aria-label="splits" tabindex="0"><table>')
    assert '<th scope="row">train</th><td>1,204</td>' in shown


@pytest.mark.parametrize(
    ("known", "count", "in_sight", "folded", "more"),
    [
        (3, None, 3, None, None),
        (8, 8, 8, None, None),
        (20, 20, 8, "show 12 more", None),
        (9, None, 9, None, None),  # a fold for a single line would take its place
        (10, None, 8, "show 2 more", None),
        (1000, 1404, 8, "show 192 more", "and 1,204 more"),
        (5, 1209, 5, None, "and 1,204 more"),
    ],
)
def test_a_long_list_is_folded_and_then_counted(
    known: int, count: int | None, in_sight: int, folded: str | None, more: str | None
) -> None:
    shown = listing([f"a.jsonl:{line}" for line in range(known)], count)
    assert shown.split("<details>")[0].count("<li>") == in_sight
    assert re.findall(r"<summary>(.*?)</summary>", shown) == ([folded] if folded else [])
    assert re.findall(r'"more">(.*?)</p>', shown) == ([more] if more else [])


def test_nothing_to_say_is_nothing() -> None:
    assert quiet([]) == ""
    assert "<ul>" not in verdict("good", "No problem found")
