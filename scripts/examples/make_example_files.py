"""Writes files of texts for the experiments that read one, from packages that are installed with llmtune: no network.

Usage: python scripts/examples/make_example_files.py [FOLDER]

- python_code.jsonl: Python functions of 3 to 60 lines out of sympy and networkx (BSD), for `code_generation`.
- science_text.jsonl, science_eval.jsonl: the prose in the documentation of scipy and scikit-learn (BSD), the second
  out of other modules than the first, for `domain_text`. One field's English with its own words; no medicine, which
  nothing that is installed has.
- package_prose.jsonl: paragraphs out of the descriptions of the locked packages, each under its package's licence, for
  `creative_writing`. It is continuous English, but no stories, of which nothing that is installed has any.

The same versions of the packages give the same bytes.
"""

import ast
import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llmtune.data.reading.embedded import embedded_blocks, package_folder, source_files
from llmtune.data.records import Record

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
SCIENCE = ("scipy", "sklearn")
COMMANDS = {
    "code_generation": "data.path=python_code.jsonl",
    "domain_text": "data.path=science_text.jsonl data.eval_path=science_eval.jsonl",
    "creative_writing": "data.path=package_prose.jsonl",
}
"""What to type with each experiment."""
NUM_CODE, NUM_SCIENCE, NUM_SCIENCE_EVAL, NUM_PROSE = 400, 400, 60, 200
MOST_OF_A_MODULE = 6
_WORDS = range(60, 301)
_FEWEST_WORDS = 40
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
_SECTION = re.compile(r"\n(?=[A-Z][\w ]*\n-{3,}(?:\n|$))")
_TABLE = re.compile(r"={3,}|-{3,}|autosummary|%\(")
_MARKUP = re.compile(r"[|`<>{}\\]|://|::|\]\(|\]\[|^[-*+.#>=~!\[(]|^\d+\.|[=~-]{3,}|THE SOFTWARE|Copyright")


def write_files(folder: Path) -> dict[str, int]:
    """Write the files into `folder`; the number of rows by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    science, science_eval = _science_texts()
    contents = {
        "python_code.jsonl": _picked(_functions(), NUM_CODE),
        "science_text.jsonl": science,
        "science_eval.jsonl": science_eval,
        "package_prose.jsonl": _picked(_package_prose(), NUM_PROSE),
    }
    for name, texts in contents.items():
        rows = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
        (folder / name).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return {name: len(texts) for name, texts in contents.items()}


def _functions() -> Iterator[str]:
    """Text of every function that `data=embedded_code_text` has."""
    entries = (entry for block in embedded_blocks("text") for entry in block.entries())
    return (entry.text or "" for entry in entries if isinstance(entry, Record))


def _picked(texts: Iterable[str], count: int) -> list[str]:
    """Some of the texts, without duplicates, picked and put in an order by their content alone."""
    return sorted(set(texts), key=_place)[:count]


def _place(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _science_texts() -> tuple[list[str], list[str]]:
    """Texts to train on and texts to measure on; no module, and no text, is in both."""
    modules = {file.as_posix(): file for package in SCIENCE for file in _modules_of(package)}
    held_out: set[str] = set()
    others: set[str] = set()
    for name in sorted(modules, key=_place):
        found = held_out if len(held_out) < NUM_SCIENCE_EVAL else others
        file = package_folder(name.partition("/")[0]).parent / modules[name]
        found.update(_picked(_docstrings(file), MOST_OF_A_MODULE))
    return _picked(others - held_out, NUM_SCIENCE), _picked(held_out, NUM_SCIENCE_EVAL)


def _modules_of(package: str) -> list[Path]:
    """The package's files, relative to the folder that holds it."""
    root = package_folder(package).parent
    return [file.relative_to(root) for file in source_files(package)]


def _docstrings(file: Path) -> Iterator[str]:
    """What the docstrings of a module say in prose: their beginning and their notes."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        found = ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None
        text = _beginning_and_notes(found or "")
        if len(text.split()) in _WORDS and not _TABLE.search(text):
            yield text


def _beginning_and_notes(docstring: str) -> str:
    """A docstring without its lists of parameters, results, examples and references."""
    start, *sections = _SECTION.split(f"\n{docstring}")
    notes = [section.split("\n", 2)[-1] for section in sections if section.startswith("Notes\n")]
    return "\n\n".join(part.strip() for part in (start, *notes) if part.strip())


def _package_prose() -> Iterator[str]:
    """Neighbouring paragraphs of the locked packages' descriptions, joined until they are long enough."""
    for name in _locked_packages():
        waiting: list[str] = []
        for paragraph in _paragraphs(name):
            waiting.append(paragraph)
            if sum(len(part.split()) for part in waiting) >= _FEWEST_WORDS:
                yield "\n\n".join(waiting)
                waiting = []


def _paragraphs(package: str) -> Iterator[str]:
    """Paragraphs of plain sentences in the description of an installed package; none where it isn't installed."""
    try:
        metadata = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        print(f"{package} isn't installed: its description is left out", file=sys.stderr)
        return
    description = str(metadata.json.get("description", ""))
    for block in re.split(r"\n\s*\n", description):
        paragraph = " ".join(block.split())
        if paragraph[:1].isupper() and paragraph.endswith((".", "!", "?")) and not _MARKUP.search(paragraph):
            yield paragraph


def _locked_packages() -> Sequence[str]:
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return sorted(line.partition("==")[0] for line in lines if "==" in line and not line.startswith(("#", " ")))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for name, count in write_files(folder).items():
        print(f"{folder / name}: {count} rows")
    print("\n".join(["then type there", *(f"  python -m llmtune +experiment={n} {t}" for n, t in COMMANDS.items())]))


if __name__ == "__main__":
    main()
