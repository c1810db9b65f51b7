"""What kind of file holds the rows: by its content, and by its name where the content leaves that open."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.data.reading.csv_rows import DELIMITERS, delimiter_of, header_of
from llmtune.data.reading.not_read import why_binary, why_other_encoding
from llmtune.data.reading.streams import CutShort, read_chunks
from llmtune.data.shaping.forms import SHAPES_IN_WORDS
from llmtune.errors import DataError

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
FORMATS = {"jsonl": "JSONL", "json": "JSON", "txt": "text", "csv": "CSV", "parquet": "Parquet"}
PACKED_ENDINGS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
COLUMNS = frozenset(
    [
        "text",
        "content",
        "prompt",
        "completion",
        "instruction",
        "input",
        "output",
        "messages",
        "conversations",
        "conversation",
        "system",
        "tools",
        "question",
        "answer",
        "response",
    ]
)
"""Names that tell a table's header from other text."""
_PARQUET = b"PAR1"
_PACKED = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"))
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""A frame without data, with which some zstd files begin."""
_HEAD = 2**18
_ARRAY_OF_OBJECTS = re.compile(r"\[\s*(\{|\]|$)")
_MOST_LINES = 5


@dataclass(frozen=True)
class Kind:
    """How a file is read."""

    format: str
    """jsonl, json, txt, csv or parquet."""
    compression: str | None
    """gzip, zstd or None."""
    delimiter: str = ","
    """What parts the columns of CSV."""

    def __str__(self) -> str:
        table = f" with {DELIMITERS[self.delimiter]}" if self.format == "csv" and self.delimiter != "," else ""
        return f"{FORMATS[self.format]}{table}{f', compressed by {self.compression}' if self.compression else ''}"


@dataclass(frozen=True)
class Asked:
    """Which file is meant, for messages, and what is known of it."""

    path: str
    key: str
    """Config key that named it, such as `data.path`."""
    format: str = "auto"
    columns: frozenset[str] = COLUMNS
    """Names that columns may have."""

    @property
    def cure(self) -> str:
        """How to tell the format."""
        head, _, last = self.key.rpartition(".")
        if last != "path":
            return f"rename the file: known endings are {', '.join(ENDINGS)}"
        return f"set {head}.format to jsonl, json, txt, csv or parquet"


def named_kind(name: str) -> Kind | None:
    """What a file's name says it is; None for an ending that isn't known."""
    ending, compression = _ending(name)
    file_format = ENDINGS.get(ending)
    return Kind(file_format, compression) if file_format else None


def _ending(name: str) -> tuple[str, str | None]:
    """The ending that tells the format, and the compression that another behind it tells."""
    path = Path(name)
    compression = PACKED_ENDINGS.get(path.suffix.lower())
    return (Path(path.stem).suffix if compression else path.suffix).lower(), compression


def kind_of(file: Path, asked: Asked) -> Kind:
    """How a file is read.

    Args:
        file: the file.
        asked: how it is named.

    Raises:
        DataError: it is of a kind or an encoding that isn't read, or may be of several.
    """
    with file.open("rb") as stream:
        start = stream.read(4)
    if not start:
        raise DataError(f"{asked.path}:1: the file is empty; rows need {SHAPES_IN_WORDS}")
    compression = _compression(start)
    head, is_whole = _head(file, compression, asked)
    if head.startswith(_PARQUET):
        return _parquet(compression, asked, file.name)
    if problem := why_binary(head, file.name):
        raise DataError(f"{asked.path}:1: {problem}")
    if _compression(head[:4]):
        raise DataError(f"{asked.path}:1: the file is compressed twice; unpack it once")
    lines = head if is_whole or b"\n" not in head else head[: head.rfind(b"\n") + 1]
    if found := why_other_encoding(lines, file.name, compression):
        raise DataError(f"{asked.path}:{found[0]}: {found[1]}")
    text = lines.decode(errors="replace").removeprefix("\ufeff")
    file_format = asked.format if asked.format != "auto" else _text_format(text, is_whole, asked)
    if file_format == "parquet":
        raise DataError(f"{asked.path}:1: this isn't a Parquet file; {asked.cure}")
    return Kind(file_format, compression, _delimiter(text, asked) if file_format == "csv" else ",")


def _compression(start: bytes) -> str | None:
    if _SKIPPABLE.match(start):
        return "zstd"
    return next((name for mark, name in _PACKED if start.startswith(mark)), None)


def _head(file: Path, compression: str | None, asked: Asked) -> tuple[bytes, bool]:
    """The beginning of a file, unpacked, its byte order mark of UTF-8 left out; and whether that is all."""
    held = b""
    try:
        for chunk in read_chunks(file, compression):
            held += chunk
            if len(held) > _HEAD:
                return held[:_HEAD], False
    except CutShort as cut:
        if not held:
            raise DataError(f"{asked.path}:1: {cut.reason}") from None
    return held, True


def _parquet(compression: str | None, asked: Asked, name: str) -> Kind:
    if compression:
        unpack = f"unpack it with: {compression} -dk {shlex.quote(name)}"
        raise DataError(f"{asked.path}:1: this is Parquet inside {compression}, which can't be read; {unpack}")
    if asked.format not in ("auto", "parquet"):
        raise DataError(f"{asked.path}:1: this is a Parquet file, not {FORMATS[asked.format]}; {asked.cure}")
    return Kind("parquet", None)


def _delimiter(text: str, asked: Asked) -> str:
    if _ending(asked.path)[0] == ".tsv":
        return "\t"
    found = delimiter_of(text, asked.columns)
    if found is None:
        raise DataError(f"{asked.path}:1: it can't be told what parts the columns; write the table with commas")
    return found


def _text_format(text: str, is_whole: bool, asked: Asked) -> str:
    """The format of text; what its name says where the content fits that as well."""
    kind = named_kind(asked.path)
    named = kind.format if kind else None
    content = text.lstrip()
    if not content:
        return named if named in ("jsonl", "json", "csv") else "txt"
    lines = [line for line in content.split("\n") if line.strip()]
    found = _json_format(content, lines, is_whole, named)
    if found is None and named not in {"csv", "txt"} and _is_table(text, asked):
        found = "csv"
    if found or named not in (None, "parquet"):
        return found or str(named)
    if named == "parquet":
        raise DataError(f"{asked.path}:1: this isn't a Parquet file; {asked.cure}")
    raise DataError(
        f"{asked.key}={asked.path}: neither the ending {_ending(asked.path)[0] or '(none)'} nor the content tells the "
        f"format; {asked.cure}"
    )


def _json_format(content: str, lines: list[str], is_whole: bool, named: str | None) -> str | None:
    """The format, jsonl or json, where the content shows it; None where the name decides."""
    rows = [_json_or_none(line) for line in lines[:_MOST_LINES]]
    first = rows[0]
    if content.startswith("["):
        if isinstance(first, list) and not (first and isinstance(first[0], dict)):
            return "json" if named in (None, "parquet") else None
        return "json" if first is not None or _ARRAY_OF_OBJECTS.match(content) else None
    num_objects = sum(isinstance(row, dict) for row in rows)
    if num_objects and 2 * num_objects >= len(rows):
        return "json" if named == "json" and len(lines) == 1 and is_whole else "jsonl"
    if not content.startswith("{") or first is not None:
        return None
    if _is_object_of_lines(content, is_whole):
        return "json"
    return "jsonl" if named is None and len(lines) == 1 and not is_whole else None


def _is_object_of_lines(content: str, is_whole: bool) -> bool:
    """Whether text begins with an object that takes several lines."""
    try:
        _, end = json.JSONDecoder().raw_decode(content)
    except json.JSONDecodeError as error:
        is_cut = not is_whole and error.pos >= len(content.rstrip()) - 1
        return content.split("\n", 1)[0].strip() == "{" and is_cut
    except (ValueError, RecursionError):
        return False
    return "\n" in content[:end]


def _json_or_none(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_table(text: str, asked: Asked) -> bool:
    delimiter = delimiter_of(text, asked.columns)
    header = header_of(text, delimiter) if delimiter else []
    return len(header) > 1 and bool(asked.columns & set(header))
