"""Files of examples, opened: what each is, its sha256, and its rows in blocks."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.config.data import RowConfig
from llmtune.data.reading.blocks import Block
from llmtune.data.reading.csv_rows import csv_blocks
from llmtune.data.reading.digests import Stamp, changed, stamp_of, stamped_digest
from llmtune.data.reading.json_arrays import json_blocks
from llmtune.data.reading.kinds import COLUMNS, Asked, Kind, kind_of, named_kind
from llmtune.data.reading.lines import line_blocks, paragraph_blocks
from llmtune.data.reading.places import Place, find_places
from llmtune.data.reading.streams import read_chunks
from llmtune.data.reading.tables import parquet_blocks
from llmtune.errors import DataError, explained
from llmtune.logs import say

_MOST_NAMED = 5


@dataclass(frozen=True)
class DataFile:
    """A file that holds rows."""

    place: Place
    kind: Kind
    stamp: Stamp
    """How it stood as it was opened."""
    sha256: str

    @property
    def origin(self) -> dict[str, Any]:
        """What the record says of it."""
        return {
            "path": self.place.path,
            "format": self.kind.format,
            "compression": self.kind.compression,
            "sha256": self.sha256,
            "bytes": self.stamp.size,
        }

    def blocks(self, rows: RowConfig) -> Iterator[Block]:
        """The rows in blocks.

        Raises:
            DataError: the file isn't what it was when it was opened.
        """
        self._check_unchanged()
        try:
            yield from self._blocks(rows)
        except OSError as error:
            raise not_readable(self.place.path, error) from error
        self._check_unchanged()

    def _blocks(self, rows: RowConfig) -> Iterator[Block]:
        path, file = self.place.path, self.place.file
        if self.kind.format == "parquet":
            return parquet_blocks(path, file)
        chunks = read_chunks(file, self.kind.compression)
        match self.kind.format:
            case "json":
                return json_blocks(path, chunks)
            case "csv":
                return csv_blocks(path, chunks, self.kind.delimiter)
            case "txt":
                return paragraph_blocks(path, chunks, rows.text_column or "text")
            case _:
                return line_blocks(path, chunks)

    def _check_unchanged(self) -> None:
        try:
            is_same = stamp_of(self.place.file) == self.stamp
        except OSError as error:
            raise not_readable(self.place.path, error) from error
        if not is_same:
            raise changed(self.place.path)


def open_files(path: str, file_format: str, key: str, rows: RowConfig, cache_dir: Path) -> list[DataFile]:
    """Every file that a path names, in the order of their names.

    Args:
        path: a file, a folder or a glob, as it was typed.
        file_format: how they are read; "auto" goes by content and name.
        key: config key that holds the path.
        rows: how rows are read.
        cache_dir: where digests are remembered.

    Raises:
        DataError: there is no file, or one that can't be read.
    """
    found = find_places(path, key)
    opened, left_out = [], found.left_out
    for place in found.places:
        asked = Asked(place.path, key, file_format, COLUMNS | _columns(rows))
        try:
            file = _open(place, asked, cache_dir)
        except OSError as error:
            raise not_readable(place.path, error) from error
        if file is None:
            left_out.append(place.name)
        else:
            opened.append(file)
    if left_out:
        named = ", ".join(sorted(left_out)[:_MOST_NAMED])
        more = f" and {len(left_out) - _MOST_NAMED:,} more" if len(left_out) > _MOST_NAMED else ""
        say(f"{key}={path}: left out {named}{more}")
    if not opened:
        raise DataError(f"{key}={path}: the folder holds no file that can be read; name a file of examples")
    return opened


def digest_of(files: list[DataFile]) -> str:
    """Tells apart what files give, wherever they lie."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(
            "\0".join([file.place.name, repr(file.kind), file.sha256, ""]).encode("utf-8", "backslashreplace")
        )
    return digest.hexdigest()


def not_readable(path: str, error: OSError) -> DataError:
    """The error of a file that the system doesn't give."""
    reason = explained(OSError(error.errno, "")) or error.strerror or type(error).__name__
    return DataError(f"{path}: the file can't be read: {reason}")


def _open(place: Place, asked: Asked, cache_dir: Path) -> DataFile | None:
    """The file; None for one among others that its name doesn't make one of rows, and that is none."""
    named, begun = named_kind(place.path), stamp_of(place.file)
    try:
        kind = kind_of(place.file, asked)
    except DataError:
        if place.name and (not begun.size or (named is None and asked.format == "auto")):
            return None
        raise
    if asked.format == "auto" and kind.format != (named.format if named else None):
        say(f"{asked.key}: {place.path} holds {kind}, and is read as that")
    elif named and kind.compression != named.compression:
        say(f"{asked.key}: {place.path} is {'' if kind.compression else 'not '}compressed, and is read as {kind}")
    stamp, sha256 = stamped_digest(place.file, cache_dir)
    if stamp != begun:
        raise changed(place.path)
    return DataFile(place, kind, stamp, sha256)


def _columns(rows: RowConfig) -> frozenset[str]:
    names = (value for name, value in vars(rows).items() if name.endswith("_column"))
    return frozenset(name for name in names if name)
