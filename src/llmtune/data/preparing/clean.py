"""The kept rows as a file of their own."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.config.data import DataConfig, MixtureConfig
from llmtune.config.paths import writing
from llmtune.data.preparing.build import Sources
from llmtune.data.preparing.examples import ExampleReader
from llmtune.data.preparing.prepared import PreparedData
from llmtune.data.preparing.report import KEPT
from llmtune.data.reading.digests import Stamp, stamp_of
from llmtune.data.reading.places import leads_to
from llmtune.data.records import Record
from llmtune.data.shaping.shapes import as_row
from llmtune.errors import DataError
from llmtune.runs.manifest import write_json

_WRITTEN = "clean.json"


def check_clean_target(config: DataConfig) -> None:
    """Check that the file for the kept rows is none that the rows are read from, nor would be once it is there.

    Raises:
        DataError: it is.
    """
    target = _target(config)
    if target is None:
        return
    for key, path in _paths(config):
        if path is not None and leads_to(path, target):
            raise DataError(
                f"data.write_clean={config.write_clean}: {key}={path} would read this file as examples; name one "
                "elsewhere"
            )


def write_clean(config: DataConfig, data: PreparedData) -> tuple[Path, int] | None:
    """Write the rows that are kept for training, validation and test as JSONL, in the sources' order.

    Rows of `data.eval_path` aren't among them, nor those of which no training example is left. A file that already
    holds just that stays as it is; it isn't read where it stands as it stood when that was last seen.

    Returns:
        The file and its number of rows; None where none was asked for.

    Raises:
        DataError: another file is there, or one that the rows are read from.
    """
    check_clean_target(config)
    target = _target(config)
    if target is None:
        return None
    known = _known(data, target)
    if known is not None:
        return target, known
    with writing("data.write_clean", target):
        num_rows, stamp = _write(config, data, target)
    with suppress(OSError):  # where it can't be remembered the file is read again
        entry = {"digest": data.digest, "num_rows": num_rows, **vars(stamp)}
        write_json(data.folder / _WRITTEN, _written(data) | {str(target.resolve()): entry})
    return target, num_rows


def _target(config: DataConfig) -> Path | None:
    return None if config.write_clean is None else Path(config.write_clean).expanduser()


def _paths(config: DataConfig) -> Iterator[tuple[str, str | None]]:
    """What is read from files, by its key."""
    yield "data.eval_path", config.eval_path
    yield "data.path", getattr(config, "path", None)
    if isinstance(config, MixtureConfig):
        yield from ((f"data.sources[{number}].path", source.path) for number, source in enumerate(config.sources))


def _known(data: PreparedData, target: Path) -> int | None:
    """Rows of the file where it stands as it stood when it held just these; None where it has to be looked at."""
    entry = _written(data).get(str(target.resolve()))
    if not isinstance(entry, dict) or not isinstance(entry.get("num_rows"), int):
        return None
    try:
        now = {"digest": data.digest, "num_rows": entry["num_rows"], **vars(stamp_of(target))}
    except OSError:
        return None
    return entry["num_rows"] if entry == now else None


def _written(data: PreparedData) -> dict[str, Any]:
    """What is remembered of the files that hold the kept rows."""
    try:
        written = json.loads((data.folder / _WRITTEN).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return written if isinstance(written, dict) else {}


def _write(config: DataConfig, data: PreparedData, target: Path) -> tuple[int, Stamp]:
    """Write the file, or find that it holds just that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    num_rows = 0
    try:
        with temporary.open("wb") as file:
            for line in _lines(config, data):
                file.write(line)
                num_rows += 1
            file.flush()
            os.fsync(file.fileno())
        if not target.exists():
            temporary.replace(target)
        stamp = stamp_of(target)
        if temporary.exists() and not _same(target, temporary):
            raise DataError(f"data.write_clean={target}: another file is there; remove it, or name a new one")
    finally:
        temporary.unlink(missing_ok=True)
    return num_rows, stamp


def _lines(config: DataConfig, data: PreparedData) -> Iterator[bytes]:
    split = np.load(data.folder / KEPT, allow_pickle=False)
    split[data.left_out] = -1
    sources = Sources(list(data.sources), [])
    reader = ExampleReader(tuple(source.rows for source in sources.all), masks=config.personal_data == "mask")
    found = (record for task in sources.tasks() for record in reader.read(task) if isinstance(record, Record))
    for record, number in zip(found, split, strict=False):  # the test file's rows come after them
        if number >= 0:
            yield json.dumps(_row(record, reader), ensure_ascii=False).encode() + b"\n"


def _row(record: Record, reader: ExampleReader) -> dict[str, Any]:
    row = as_row(reader.kept(record))
    if reader.masks and "group" in row:  # it may be a person's name or address
        row["group"] = hashlib.sha256(str(row["group"]).encode()).hexdigest()[:16]
    return row


def _same(file: Path, other: Path) -> bool:
    if file.stat().st_size != other.stat().st_size:
        return False
    with file.open("rb") as one, other.open("rb") as two:
        while part := one.read(1 << 20):
            if part != two.read(1 << 20):
                return False
    return True
