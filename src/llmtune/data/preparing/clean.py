"""The kept rows as a file of their own."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.config.data import DataConfig
from llmtune.data.preparing.build import Sources
from llmtune.data.preparing.examples import ExampleReader
from llmtune.data.preparing.prepared import PreparedData
from llmtune.data.preparing.report import KEPT
from llmtune.data.records import Record
from llmtune.data.shaping.shapes import as_row
from llmtune.errors import DataError


def write_clean(config: DataConfig, data: PreparedData) -> tuple[Path, int] | None:
    """Write the rows that are kept for training, validation and test as JSONL, in the sources' order.

    Rows of `data.eval_path` aren't among them. A file that already holds just that stays as it is.

    Returns:
        The file and its number of rows; None where none was asked for.

    Raises:
        DataError: another file is there.
    """
    if config.write_clean is None:
        return None
    target = Path(config.write_clean).expanduser()
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
        if target.exists() and not _same(target, temporary):
            raise DataError(f"data.write_clean={target}: another file is there; remove it, or name a new one")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target, num_rows


def _lines(config: DataConfig, data: PreparedData) -> Iterator[bytes]:
    split = np.load(data.folder / KEPT, allow_pickle=False)
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
