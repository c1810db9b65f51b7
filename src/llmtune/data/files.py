"""Files of examples: JSONL, JSON, TXT, CSV and Parquet, with true line numbers."""

import csv
import difflib
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmtune.data.records import Problems, RecordSet
from llmtune.data.rows import SHAPES_IN_WORDS, RowReader
from llmtune.errors import DataError

_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "txt", ".csv": "csv", ".parquet": "parquet"}
_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_BINARY = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd"}
_BINARY |= {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"%PDF": "PDF", b"ARROW1": "Arrow", b"\x89PNG": "PNG"}
_PARQUET_MAGIC = b"PAR1"
_TELL_FORMAT = "tell its format by the name's ending, or for data.path by data.format"


def read_file(path: str, file_format: str = "auto", *, key: str = "data.path") -> RecordSet:
    """Every example of a file.

    Args:
        path: the file.
        file_format: one of jsonl, json, txt, csv, parquet; "auto" goes by the name's ending.
        key: config key that named the file, for messages.

    Raises:
        DataError: the file is missing, of an unknown kind or encoding, or has rows that can't be read; all bad rows
            are named by line, none is quoted.
    """
    file = find_file(path, key=key)
    kind = format_of(file, file_format, key=key)
    problems = Problems()
    rows = RowReader(path, problems)
    _READERS[kind](file, rows)
    problems.raise_if_any()
    if not rows.records:
        skipped = ", ".join(f"{count} skipped: {reason}" for reason, count in rows.skipped.items())
        raise DataError(f"{path}:1: no example in this file ({skipped or 'it is empty'}); rows need {SHAPES_IN_WORDS}")
    origin: dict[str, Any] = {"path": str(file.resolve()), "format": kind, "sha256": file_digest(file)}
    origin |= {"rows": rows.num_rows, "forms": dict(rows.forms), "unread_columns": sorted(rows.unread_columns)}
    return RecordSet(rows.records, origin, dict(rows.skipped))


def find_file(path: str, *, key: str = "data.path") -> Path:
    """The file that `path` names.

    Raises:
        DataError: there is none, or it is a folder; the nearest name beside it is suggested.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    if file.is_dir():
        raise DataError(f"{key}={path} is a folder; name one file in it")
    beside = [entry.name for entry in file.parent.iterdir() if entry.is_file()] if file.parent.is_dir() else []
    nearest = difflib.get_close_matches(file.name, beside, n=1)
    hint = f"; did you mean {file.parent / nearest[0]}?" if nearest else f"; set {key} to a file that is there"
    raise DataError(f"{key}={path}: there is no such file{hint}")


def file_digest(file: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def format_of(file: Path, file_format: str = "auto", *, key: str = "data.path") -> str:
    """The format a file is read as: `file_format`, or what its name's ending tells where that is "auto".

    Raises:
        DataError: the ending is unknown; the cure is a setting for `data.path` and another name for other keys.
    """
    if file_format != "auto":
        return file_format
    if file.suffix.lower() in _ENDINGS:
        return _ENDINGS[file.suffix.lower()]
    known = ", ".join(_ENDINGS)
    cure = "set data.format to jsonl, json, txt, csv or parquet" if key == "data.path" else "rename the file"
    raise DataError(
        f"{key}={file}: the ending {file.suffix or '(none)'} doesn't tell the format, known are {known}; {cure}"
    )


def _read_text(file: Path) -> str:
    """The file's characters, without a byte order mark; line endings stay."""
    content = file.read_bytes()
    for start, name in _ENCODINGS.items():
        if content.startswith(start):
            raise DataError(f"{file}:1: the file is {name}, only UTF-8 is read; {_convert(file, name)}")
    for start, name in _BINARY.items():
        if content.startswith(start):
            raise DataError(f"{file}:1: this is a binary file ({name}), not text; unpack it, or {_TELL_FORMAT}")
    head = content[:4096]
    if head.count(0) > len(head) // 4:
        raise DataError(f"{file}:1: the file looks like UTF-16 without a mark; {_convert(file, 'UTF-16LE')}")
    zero = content.find(0)
    if zero >= 0:
        line = content.count(b"\n", 0, zero) + 1
        raise DataError(f"{file}:{line}: the file holds a zero byte, so it is binary or damaged, not text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}:{line}: byte {content[error.start]:#04x} isn't UTF-8, the file looks like Latin-1 or "
            f"Windows-1252; {_convert(file, 'WINDOWS-1252')}"
        ) from None


def _convert(file: Path, encoding: str) -> str:
    return f"convert it with: iconv -f {encoding} -t UTF-8 {file.name} > utf8-{file.name}"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers. Only LF and CR LF end a line: U+2028 and others may stand inside a JSON string."""
    for number, line in enumerate(text.split("\n") if text else (), start=1):
        yield number, line.removesuffix("\r")


def _read_jsonl(file: Path, rows: RowReader) -> None:
    for number, line in _lines(_read_text(file).removesuffix("\n")):
        if not line.strip():
            rows.skip("blank line")
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            rows.problem(number, f"not valid JSON: {_json_reason(error)}")
            continue
        rows.add(number, row)


def _read_json(file: Path, rows: RowReader) -> None:
    """An array of rows; rows one a line under a .json name are read as well."""
    text = _read_text(file)
    start = _skip_space(text, 0)
    if start < len(text) and text[start] == "{":
        _read_json_objects(file, text, rows)
        return
    if start == len(text) or text[start] != "[":
        rows.problem(text.count("\n", 0, start) + 1, "a JSON file must hold an array of rows, or one row a line")
        return
    decoder = json.JSONDecoder()
    position, line, counted = _skip_space(text, start + 1), 1, 0
    while position < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            bad = line + text.count("\n", counted, getattr(error, "pos", counted))
            rows.problem(bad, f"not valid JSON, nothing after it was read: {_json_reason(error)}")
            return
        rows.add(line, row)
        position = _skip_space(text, position)
        if position < len(text) and text[position] == ",":
            position = _skip_space(text, position + 1)
        elif position < len(text) and text[position] != "]":
            bad = 1 + text.count("\n", 0, position)
            rows.problem(bad, "not valid JSON, nothing after it was read: a comma is missing between two rows")
            return
    end = _skip_space(text, position + 1)
    if position >= len(text):
        rows.problem(1 + text.rstrip().count("\n"), "not valid JSON: the closing ] of the array is missing")
    elif end < len(text):
        rows.problem(1 + text.count("\n", 0, end), "not valid JSON: there is more after the array's closing ]")


def _read_json_objects(file: Path, text: str, rows: RowReader) -> None:
    """One object a line, or a single object with an array inside, which is refused with its keys named."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        _read_jsonl(file, rows)
        return
    lists = [key for key, value in whole.items() if isinstance(value, list) and key != "messages"]
    if lists:
        named = ", ".join(f"`{key}`" for key in lists)
        rows.problem(1, f"the file is one object; store the array under {named} as the whole file")
        return
    rows.add(1, whole)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def _read_txt(file: Path, rows: RowReader) -> None:
    """Paragraphs: blank lines part the examples."""
    paragraph: list[str] = []
    first = 1
    for number, line in _lines(_read_text(file) + "\n"):
        if line.strip():
            first = first if paragraph else number
            paragraph.append(line)
        elif paragraph:
            rows.add_text(first, "\n".join(paragraph))
            paragraph = []


def _read_csv(file: Path, rows: RowReader) -> None:
    """A header, then rows; quoted values may hold commas, quotes and line ends."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(_read_text(file), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        first = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            rows.problem(first, f"not valid CSV: {error}")
            continue
        if not values:
            rows.skip("blank line")
        elif header is None:
            header = [name.strip() for name in values]
            if not _check_header(header, first, rows):
                return
        elif len(values) != len(header):
            rows.problem(first, f"{len(values)} values where the header has {len(header)}; quote values with commas")
        else:
            rows.add(first, dict(zip(header, values, strict=True)))


def _check_header(header: list[str], line: int, rows: RowReader) -> bool:
    if len(set(header)) < len(header):
        rows.problem(line, "the header names a column twice")
        return False
    if set(header) & {"text", "content", "prompt", "completion"}:
        return True
    other = next((mark for mark in (";", "\t", "|") if mark in header[0]), None)
    hint = f"; the columns seem to be parted by {other!r}, only commas are read" if other else ""
    rows.problem(line, f"the header names none of text, content, prompt and completion{hint}")
    return False


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _read_parquet(file: Path, rows: RowReader) -> None:
    with file.open("rb") as stream:
        if stream.read(4) != _PARQUET_MAGIC:
            raise DataError(f"{file}:1: this isn't a Parquet file; {_TELL_FORMAT}")
    number = 0
    try:
        for number, row in enumerate(_parquet_rows(file), start=1):
            rows.add(number, row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}:{number + 1}: the Parquet file is damaged ({type(error).__name__})") from error


_READERS = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "txt": _read_txt,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
