"""Pieces of a source that can be read by any process: rows with their true lines, or why there is none."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from llmtune.data.records import Record


@dataclass(frozen=True, slots=True)
class Row:
    """A row as its file has it."""

    line: int
    """Line on which it starts, counted from 1; the row's number for Parquet and the Hub."""
    content: Any
    """What JSON can hold; a mapping from column to value if it is a good row."""


@dataclass(frozen=True, slots=True)
class NoRow:
    """A place where a row should be and none can be read."""

    line: int
    reason: str
    """Never quotes the row."""
    is_mistake: bool = True
    """False for what holds no example by right, such as a blank line."""


Entry = Row | NoRow | Record
"""A `Record` is a row that its source already gives as an example."""


class Block(Protocol):
    """Some consecutive rows of one source; picklable, a few megabytes at most."""

    @property
    def path(self) -> str:
        """How the rows' source is named in records and messages."""
        ...

    def entries(self) -> Iterator[Entry]:
        """The rows in their order; the same each time. Raises nothing: what can't be read is a `NoRow`."""
        ...
