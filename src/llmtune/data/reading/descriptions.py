"""English prose that is installed with llmtune: what the packages that it needs say of themselves."""

import importlib.metadata
import re
from collections.abc import Iterator

from llmtune.data.reading.ready import ReadyBlock
from llmtune.data.records import Record

PACKAGES = (
    *("accelerate", "annotated-types", "charset-normalizer", "cloudpickle", "databricks-sdk", "fastapi", "fonttools"),
    *("fsspec", "gitpython", "graphql-core", "graphql-relay", "h11", "huggingface-hub", "idna", "ml-dtypes", "mlflow"),
    *("onnx", "onnxscript", "pandas", "peft", "prettytable", "pyasn1", "pycparser", "pydantic", "python-dotenv"),
    *("regex", "rich", "smmap", "sympy", "threadpoolctl", "tqdm", "transformers", "typer", "wcwidth"),
)
"""Those of which there is the most prose, among what llmtune's own requirements bring on every machine."""
LONGEST = 1200
"""Characters of a piece, at most: about 280 tokens. Many short pieces tell more than few long ones."""
_SHORTEST = 400
_FEWEST_WORDS = 12
_FEWEST_LETTERS = 0.9
_FENCED = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[^\n]*$", re.MULTILINE | re.DOTALL)
_LINKED = re.compile(
    r"!?\[([^\]\[]*)\](?:\([^)]*\)|\[[^\]]*\])"  # Markdown
    r"|`([^`<]+?)\s*<[^>]*>`_{1,2}|:\w+:`~?([^`]+)`"  # reStructuredText
)
_NO_PROSE = ("http", "<", "|", "![", "::", "=>", ">>>", "$ ", " * ", " - ")


def description_blocks(num_pieces: int) -> list[ReadyBlock]:
    """Pieces of the packages' descriptions, a block and a group a package; packages that aren't there give none.

    Args:
        num_pieces: how many pieces at most: the first of each package, then the second of those that have one.
    """
    pieces = {package: list(_pieces(_description(package))) for package in PACKAGES}
    deepest = max(map(len, pieces.values()))
    ranked = [(rank, package) for rank in range(deepest) for package in PACKAGES if rank < len(pieces[package])]
    taken = set(ranked[:num_pieces])
    blocks: list[ReadyBlock] = []
    for package, texts in pieces.items():
        rows = tuple(
            Record(package, number + 1, text, group=package)
            for number, text in enumerate(texts)
            if (number, package) in taken
        )
        if rows:
            blocks.append(ReadyBlock(package, rows))
    return blocks


def paragraphs_of(description: str) -> Iterator[str]:
    """The paragraphs of plain sentences in Markdown or reStructuredText, a line each, marks of style taken out.

    Headings, lists, tables, code, badges and bare addresses are left out by simple rules.
    """
    text = _FENCED.sub("\n", description.replace("\r\n", "\n"))
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines or any(line[0] in " \t" for line in lines):
            continue
        plain = _LINKED.sub(lambda found: next(filter(None, found.groups()), ""), " ".join(" ".join(lines).split()))
        plain = plain.replace("**", "").replace("``", "`")
        if _is_prose(plain):
            yield plain


def _description(package: str) -> str:
    try:
        return str(importlib.metadata.metadata(package).json.get("description", ""))
    except importlib.metadata.PackageNotFoundError:
        return ""


def _pieces(description: str) -> Iterator[str]:
    """The prose cut between paragraphs; what is left at its end, or between long paragraphs, may be too short."""
    held = ""
    for paragraph in paragraphs_of(description):
        if held and len(held) + 2 + len(paragraph) > LONGEST:
            yield from [held] if len(held) >= _SHORTEST else []
            held = ""
        held = f"{held}\n\n{paragraph}" if held else paragraph
    if len(held) >= _SHORTEST:
        yield held


def _is_prose(text: str) -> bool:
    if not text[:1].isalpha() or text[-1] not in ".!?" or any(mark in text for mark in _NO_PROSE):
        return False
    if len(text) > LONGEST or len(text.split()) < _FEWEST_WORDS or not text.isascii():
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= _FEWEST_LETTERS * len(text)
