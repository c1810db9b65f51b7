"""Files that hold an array of rows, or objects that take several lines, as a stream."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from llmtune.data.reading.blocks import Block, Entry, NoRow, Row
from llmtune.data.reading.json_rows import NOT_UTF_8, ZERO_BYTE, is_too_deep, json_reason
from llmtune.data.reading.ready import ready_blocks
from llmtune.data.reading.streams import CutShort

NOT_DECODED = re.compile("[\udc80-\udcff]")
"""What stands for bytes that aren't UTF-8."""
_LEAST = 2**20
_NEAR_END = 16
"""Characters of the longest piece, such as an escape or `-Infinity`, that an end may cut in two."""
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
_STOPPED = "not valid JSON, nothing after it was read"
_NAMES_OF_ROWS = {"text", "content", "prompt", "completion", "instruction", "output", "messages", "conversations"}
_MOST_NAMED = 3

_Sized = tuple[Entry, int]


class _Broken(Exception):
    """Nothing more can be read."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.entry = NoRow(line, reason)


def json_blocks(path: str, chunks: Iterable[bytes]) -> Iterator[Block]:
    """The rows of a JSON file: the items of one array, or one object after the other.

    Args:
        path: how the file is named.
        chunks: its content.
    """
    yield from ready_blocks(path, _entries(_Window(chunks)))


def _entries(window: "_Window") -> Iterator[_Sized]:
    try:
        start = window.next_mark()
        if start == "[":
            yield from _array(window)
        elif start == "{":
            yield from _objects(window)
        else:
            window.stop("a JSON file must hold an array of rows, or one row a line")
    except _Broken as broken:
        yield broken.entry, 0


def _array(window: "_Window") -> Iterator[_Sized]:
    window.position += 1
    while window.next_mark() not in ("]", ""):
        yield window.value()
        mark = window.next_mark()
        if mark == ",":
            window.position += 1
        elif mark not in ("]", ""):
            window.stop(f"{_STOPPED}: a comma is missing between two rows")
    if not window.next_mark():
        window.stop("not valid JSON: the closing ] of the array is missing", window.last_line)
    window.position += 1
    if window.next_mark():
        window.stop("not valid JSON: there is more after the array's closing ]")


def _objects(window: "_Window") -> Iterator[_Sized]:
    first, size = window.value()
    if not window.next_mark() and isinstance(first, Row) and (arrays := _arrays_of_rows(first.content)):
        yield NoRow(first.line, f"the file is one object; store the array under {arrays} as the whole file"), size
        return
    yield first, size
    while window.next_mark():
        yield window.value()


def _arrays_of_rows(value: Any) -> str:
    """Names of the lists of objects in an object that is no row itself."""
    if not isinstance(value, dict) or value.keys() & _NAMES_OF_ROWS:
        return ""
    found = [name for name, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    return " or ".join(f"`{name[:40]}`" for name in found[:_MOST_NAMED])


class _Window:
    """Text of a file that slides over it, as large as the largest row needs."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.position = 0
        self._text = ""
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._ended = False
        self._cut: CutShort | None = None
        self._is_damaged = False
        self._line, self._column = 1, 0
        self.last_line = 1
        """Line on which the last row ends."""
        self._counted = 0
        """Position up to which `_line` and `_column` are true."""

    def next_mark(self) -> str:
        """The next character that isn't white space, which is gone to; none at the end."""
        while True:
            match = _SPACE.match(self._text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self._text):
                return self._text[self.position]
            if not self._more():
                return ""

    def value(self) -> _Sized:
        """The row that starts here, which is gone past."""
        while True:
            try:
                row, end = _DECODER.raw_decode(self._text, self.position)
            except (ValueError, RecursionError) as error:
                if self._ended or not self._may_be_whole_later(error):
                    self._stop_at(error)
            else:
                if self._ended or end < len(self._text):
                    break
            self._more()
        text = self._text[self.position : end]
        line = self._count_to(self.position)
        self.position = end
        self.last_line = self._count_to(end)
        if self._is_damaged and (bad := NOT_DECODED.search(text)):
            return NoRow(line + text.count("\n", 0, bad.start()), NOT_UTF_8), len(text)
        if is_too_deep(row, text):
            return NoRow(line, f"not valid JSON: {json_reason(RecursionError())}"), len(text)
        return Row(line, row), len(text)

    def stop(self, reason: str, line: int | None = None) -> NoReturn:
        """End here, because the file is cut short or for a reason that another line may have."""
        if self._cut is not None:
            raise _Broken(self._count_to(len(self._text)), self._cut.reason)
        raise _Broken(line or self._count_to(self.position), reason)

    def _stop_at(self, error: Exception) -> NoReturn:
        if self._cut is not None and self._may_be_whole_later(error):
            self.stop("")
        at = error.pos if isinstance(error, json.JSONDecodeError) else self.position
        text = self._text[self.position : at + 1]
        reason = json_reason(error)
        if "\0" in text:
            raise _Broken(self._count_to(at), ZERO_BYTE)
        if self._is_damaged and NOT_DECODED.search(text):
            raise _Broken(self._count_to(at), NOT_UTF_8)
        line = self._count_to(at)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at column {self._column + 1}"
        raise _Broken(line, f"{_STOPPED}: {reason}")

    def _may_be_whole_later(self, error: Exception) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _NEAR_END

    def _more(self) -> bool:
        """Drop what is done and at least double the rest; whether there was more."""
        self._count_to(self.position)
        held = [self._text[self.position :]]
        wanted = max(_LEAST, len(held[0]))
        got = 0
        while got < wanted and not self._ended:
            held.append(self._decode(self._next_chunk()))
            got += len(held[-1])
        self._text = "".join(held)
        self.position = self._counted = 0
        return got > 0

    def _next_chunk(self) -> bytes:
        try:
            chunk = next(self._chunks, b"")
        except CutShort as cut:
            self._cut, chunk = cut, b""
        self._ended = not chunk
        return chunk

    def _decode(self, chunk: bytes) -> str:
        try:
            return self._decoder.decode(chunk, self._ended)
        except UnicodeDecodeError:
            state = self._decoder.getstate()
            self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
            self._decoder.setstate(state)
            self._is_damaged = True
            return self._decoder.decode(chunk, self._ended)

    def _count_to(self, position: int) -> int:
        """The line of a position; `_column` becomes its column. Positions only grow."""
        num_ends = self._text.count("\n", self._counted, position)
        self._line += num_ends
        if num_ends:
            self._column = position - self._text.rindex("\n", self._counted, position) - 1
        else:
            self._column += position - self._counted
        self._counted = position
        return self._line
