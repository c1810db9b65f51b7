"""Files whose rows end with lines: JSONL, and text with blank lines between the examples."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmtune.data.reading.blocks import Block, Entry, NoRow, Row
from llmtune.data.reading.json_rows import line_entry, why_not_text
from llmtune.data.reading.ready import BLOCK_SIZE, ReadyBlock
from llmtune.data.reading.streams import CutShort


@dataclass(frozen=True, slots=True)
class LinesBlock:
    """Whole lines of a JSONL file; see `Block`. Only LF and CR LF end a line."""

    path: str
    first_line: int
    content: bytes

    def entries(self) -> Iterator[Entry]:
        """A row a line."""
        for number, line in enumerate(_lines(self.content), self.first_line):
            yield line_entry(number, line)


@dataclass(frozen=True, slots=True)
class ParagraphsBlock:
    """Whole paragraphs of a text file; see `Block`."""

    path: str
    first_line: int
    content: bytes
    column: str
    """What the text is called in its row."""

    def entries(self) -> Iterator[Entry]:
        """A row a paragraph: lines without a blank one between them."""
        paragraph: list[bytes] = []
        first = self.first_line
        for number, line in enumerate(_lines(self.content), self.first_line):
            if not _is_blank(line):
                first = first if paragraph else number
                paragraph.append(line)
            elif paragraph:
                yield self._entry(first, paragraph)
                paragraph = []
        if paragraph:
            yield self._entry(first, paragraph)

    def _entry(self, first: int, paragraph: list[bytes]) -> Entry:
        content = b"\n".join(paragraph)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            return NoRow(first + content.count(b"\n", 0, error.start), why_not_text(content))
        if "\0" in text:
            return NoRow(first + text.count("\n", 0, text.index("\0")), why_not_text(content))
        return Row(first, {self.column: text})


def line_blocks(path: str, chunks: Iterable[bytes]) -> Iterator[Block]:
    """The rows of a JSONL file.

    Args:
        path: how the file is named.
        chunks: its content.
    """
    line = 1
    try:
        for piece in whole_lines(chunks):
            yield LinesBlock(path, line, piece)
            line += piece.count(b"\n")
    except CutShort as cut:
        yield ReadyBlock(path, (NoRow(line, cut.reason),))


def paragraph_blocks(path: str, chunks: Iterable[bytes], column: str) -> Iterator[Block]:
    """The examples of a text file.

    Args:
        path: how the file is named.
        chunks: its content.
        column: what the text is called in its row.
    """
    line, held = 1, []
    try:
        for piece in whole_lines(chunks):
            cut = _after_blank_line(piece)
            if cut == 0:
                held.append(piece)
                continue
            content = b"".join([*held, piece[:cut]])
            yield ParagraphsBlock(path, line, content, column)
            line, held = line + content.count(b"\n"), [piece[cut:]]
    except CutShort as cut_short:
        reached = line + sum(piece.count(b"\n") for piece in held)
        yield ReadyBlock(path, (NoRow(reached, cut_short.reason),))
        return
    content = b"".join(held)
    if content:
        yield ParagraphsBlock(path, line, content, column)


def whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that end with a line, but for the last.

    Raises:
        CutShort: as `chunks` does; the line in which it happens isn't given.
    """
    held: list[bytes] = []
    size = 0
    try:
        for chunk in chunks:
            held.append(chunk)
            size += len(chunk)
            if size >= BLOCK_SIZE and (end := chunk.rfind(b"\n") + 1):
                held[-1] = chunk[:end]
                yield b"".join(held)
                held = [chunk[end:]]
                size = len(held[0])
    except CutShort:
        content = b"".join(held)
        if end := content.rfind(b"\n") + 1:
            yield content[:end]
        raise
    content = b"".join(held)
    if content:
        yield content


def _lines(content: bytes) -> Iterator[bytes]:
    """Lines without their ends; the last need not have one."""
    for line in content.removesuffix(b"\n").split(b"\n"):
        yield line.removesuffix(b"\r")


def _is_blank(line: bytes) -> bool:
    return not line.decode(errors="replace").strip()


def _after_blank_line(piece: bytes) -> int:
    """Where the last blank line of some lines ends; 0 where there is none."""
    end = len(piece) if piece.endswith(b"\n") else piece.rfind(b"\n") + 1
    while end > 0:
        start = piece.rfind(b"\n", 0, end - 1) + 1
        if not piece[start:end].strip():
            return end
        end = start
    return 0
