"""Tables in text: CSV, and the same with semicolons, tabs or bars."""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import suppress

from llmtune.data.reading.blocks import Block, Entry, NoRow, Row
from llmtune.data.reading.json_arrays import NOT_DECODED
from llmtune.data.reading.json_rows import BLANK, NOT_UTF_8, ZERO_BYTE
from llmtune.data.reading.lines import whole_lines
from llmtune.data.reading.ready import ready_blocks
from llmtune.data.reading.streams import CutShort

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MOST_CHARACTERS = 2**26
"""Longest value; without a bound a quote that is left open takes the rest of the file into memory."""
_LEFT_OPEN = "not valid CSV, nothing after it was read: a quote that opens in this row isn't closed"
_REASONS = {
    "expected after": "a closing quote is followed by more; write quotes inside a quoted value twice",
    "new-line character": "a carriage return stands alone; end lines with LF or CR LF, or quote the value",
    "unexpected end": _LEFT_OPEN,
    "field limit": f"{_LEFT_OPEN}, or a value has more than {_MOST_CHARACTERS:,} characters",
}


def delimiter_of(head: str, columns: Iterable[str]) -> str | None:
    """What parts the columns of a header: the mark that gives most known columns, then most columns.

    Args:
        head: the beginning of the file.
        columns: names that a column may have.

    Returns:
        The mark, a comma for one column alone; None where several serve as well.
    """
    known = set(columns)
    names = {mark: header_of(head, mark) for mark in DELIMITERS}
    worth = {mark: (len(known & set(header)), len(header)) for mark, header in names.items()}
    best = max(worth.values())
    found = [mark for mark in DELIMITERS if worth[mark] == best]
    if best[1] <= 1:
        return ","
    return found[0] if len(found) == 1 else None


def header_of(head: str, delimiter: str) -> list[str]:
    """The names in the first row of a table, none where it can't be read."""
    with suppress(csv.Error):
        for values in csv.reader(io.StringIO(head, newline="\n"), delimiter=delimiter, strict=True):
            if values:
                return [name.strip() for name in values]
    return []


def csv_blocks(path: str, chunks: Iterable[bytes], delimiter: str) -> Iterator[Block]:
    """The rows of a table below its header.

    Args:
        path: how the file is named.
        chunks: its content.
        delimiter: what parts the values of a row.
    """
    yield from ready_blocks(path, _entries(_Lines(chunks), delimiter))


def _entries(lines: "_Lines", delimiter: str) -> Iterator[tuple[Entry, int]]:
    csv.field_size_limit(_MOST_CHARACTERS)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            reason = _reason(error)
            yield NoRow(line, lines.cut.reason if lines.cut and reason.startswith(_LEFT_OPEN) else reason), 0
            if reason.startswith(_LEFT_OPEN):
                return
            continue
        if values is None:
            if lines.cut is not None:
                yield NoRow(line, lines.cut.reason), 0
            return
        if values and not header:
            header = [name.strip() for name in values]
            if problem := _why_no_header(header):
                yield NoRow(line, problem), 0
                return
            continue
        yield _entry(line, header, values, lines), sum(map(len, values))


def _entry(line: int, header: list[str], values: list[str], lines: "_Lines") -> Entry:
    if not values:
        return NoRow(line, BLANK, is_mistake=False)
    if lines.are_damaged and NOT_DECODED.search("".join(values)):
        return NoRow(line, NOT_UTF_8)
    if lines.have_zeros and any("\0" in value for value in values):
        return NoRow(line, ZERO_BYTE)
    if len(values) != len(header):
        return NoRow(
            line, f"{len(values)} values where the header has {len(header)}; quote values that hold the delimiter"
        )
    return Row(line, dict(zip(header, values, strict=True)))


def _why_no_header(header: list[str]) -> str | None:
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        return "the header names a column twice"
    if any("\0" in name or NOT_DECODED.search(name) for name in named):
        return f"the header {NOT_UTF_8}"
    return None


def _reason(error: csv.Error) -> str:
    reason = next((words for part, words in _REASONS.items() if part in str(error)), str(error))
    return reason if reason.startswith(_LEFT_OPEN) else f"not valid CSV: {reason}"


class _Lines:
    """The lines of a file for `csv.reader`, each with its end."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.cut: CutShort | None = None
        self.are_damaged = False
        self.have_zeros = False
        self._lines = self._decoded(chunks)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._lines)

    def _decoded(self, chunks: Iterable[bytes]) -> Iterator[str]:
        try:
            for piece in whole_lines(chunks):
                self.have_zeros |= b"\0" in piece
                yield from io.StringIO(self._text(piece), newline="\n")
        except CutShort as cut:
            self.cut = cut

    def _text(self, piece: bytes) -> str:
        try:
            return piece.decode()
        except UnicodeDecodeError:
            self.are_damaged = True
            return piece.decode(errors="surrogateescape")
