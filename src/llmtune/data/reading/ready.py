"""Blocks of rows that were read as their file was cut."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmtune.data.reading.blocks import Entry

BLOCK_SIZE = 2 * 2**20
"""Bytes or characters from which a block is closed."""
_MOST_ENTRIES = 5000


@dataclass(frozen=True, slots=True)
class ReadyBlock:
    """Rows as they are; see `Block`."""

    path: str
    rows: tuple[Entry, ...]

    def entries(self) -> Iterator[Entry]:
        """The rows in their order."""
        return iter(self.rows)


def ready_blocks(path: str, entries: Iterable[tuple[Entry, int]]) -> Iterator[ReadyBlock]:
    """Rows in blocks of bounded size.

    Args:
        path: how the rows' source is named.
        entries: each with its size in characters.
    """
    rows: list[Entry] = []
    held = 0
    for entry, size in entries:
        rows.append(entry)
        held += size
        if held >= BLOCK_SIZE or len(rows) >= _MOST_ENTRIES:
            yield ReadyBlock(path, tuple(rows))
            rows, held = [], 0
    if rows:
        yield ReadyBlock(path, tuple(rows))
