"""The files that a comparison leaves: figures for programs, a text, and a page."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmtune.comparison.as_json import as_json
from llmtune.comparison.markdown import markdown
from llmtune.comparison.outcome import Comparison
from llmtune.comparison.page import write_comparison_page
from llmtune.runs.manifest import write_json

JSON_NAME = "comparison.json"
MARKDOWN_NAME = "comparison.md"
PAGE_NAME = "comparison.html"


@dataclass(frozen=True, kw_only=True)
class ComparisonFiles:
    """Where a comparison was written."""

    json: Path
    markdown: Path
    page: Path

    @property
    def all(self) -> tuple[Path, ...]:
        """Every one of them."""
        return self.json, self.markdown, self.page


def write_files(comparison: Comparison, folder: Path) -> ComparisonFiles:
    """Write a comparison's three files; a reader finds each whole, the old one or the new.

    Args:
        comparison: what is written.
        folder: where; made if it isn't there.
    """
    files = ComparisonFiles(json=folder / JSON_NAME, markdown=folder / MARKDOWN_NAME, page=folder / PAGE_NAME)
    write_json(files.json, as_json(comparison))
    _whole(files.markdown, lambda path: path.write_text(markdown(comparison), encoding="utf-8"))
    _whole(files.page, lambda path: write_comparison_page(path, comparison))
    return files


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and put it there once it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
