"""Rows of Arrow tables: Parquet files, and what the `datasets` library gives."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmtune.data.reading.blocks import Block, Entry, NoRow, Row
from llmtune.data.reading.ready import BLOCK_SIZE, ReadyBlock
from llmtune.errors import DataError

_MOST_ROWS = 4096
_READ_AHEAD = 2**20
_NOT_READ = (pa.ArrowException, OSError, ValueError, OverflowError, KeyError, NotImplementedError, RecursionError)


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Consecutive rows of a table; see `Block`. A row's number takes the place of the line."""

    path: str
    first_row: int
    content: bytes
    """An Arrow IPC stream."""

    def entries(self) -> Iterator[Entry]:
        """A row a row."""
        table = pa.ipc.open_stream(self.content).read_all()
        try:
            rows = _values(table)
        except _NOT_READ:
            yield from (self._entry(number, table.slice(number, 1)) for number in range(len(table)))
            return
        yield from (Row(number, row) for number, row in enumerate(rows, self.first_row))

    def _entry(self, number: int, table: pa.Table) -> Entry:
        line = self.first_row + number
        try:
            return Row(line, _values(table)[0])
        except _NOT_READ as error:
            return NoRow(line, f"a value can't be read ({type(error).__name__})")


def table_blocks(path: str, batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Block]:
    """The rows of a table in blocks of bounded size.

    Args:
        path: how the table is named.
        batches: its parts in their order.
    """
    first = 1
    for batch in batches:
        for part in _slices(batch):
            yield TableBlock(path, first, _as_bytes(part))
            first += len(part)


def parquet_blocks(path: str, file: Path) -> Iterator[Block]:
    """The rows of a Parquet file; a row group that is damaged is one place without a row.

    Args:
        path: how the file is named.
        file: the file.

    Raises:
        DataError: it isn't Parquet, or is damaged as a whole.
    """
    try:
        opened = pq.ParquetFile(file, buffer_size=_READ_AHEAD, pre_buffer=False)
    except _NOT_READ as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{path}:1: the Parquet file is damaged or cut short ({type(error).__name__}); get it anew"
        ) from error
    with opened as table:
        first = 1
        for number in range(table.num_row_groups):
            yield from _group_blocks(path, table, number, first)
            first += table.metadata.row_group(number).num_rows


def _group_blocks(path: str, table: pq.ParquetFile, number: int, first: int) -> Iterator[Block]:
    group = table.metadata.row_group(number)
    size = max(1, BLOCK_SIZE * group.num_rows // max(1, group.total_byte_size))
    batches = table.iter_batches(min(size, _MOST_ROWS), row_groups=[number])
    end = first + group.num_rows
    while first < end:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except _NOT_READ as error:
            rows = f"rows {first:,} to {end - 1:,}" if first < end - 1 else "the row"
            reason = f"{rows} of the Parquet file can't be read, it is damaged ({type(error).__name__}); get it anew"
            yield ReadyBlock(path, (NoRow(first, reason),))
            return
        for part in _slices(batch):
            yield TableBlock(path, first, _as_bytes(part))
            first += len(part)


def _slices(batch: Any) -> Iterator[Any]:
    """A batch in parts of about the size of a block: what it takes unpacked is known only now."""
    num_parts = min(len(batch), -(-batch.nbytes // BLOCK_SIZE)) or 1
    size = -(-len(batch) // num_parts)
    yield from (batch.slice(start, size) for start in range(0, len(batch), size or 1))


def _as_bytes(part: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.schema) as writer:
        writer.write(part)
    return sink.getvalue().to_pybytes()


def _values(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as what JSON can hold: times and decimal numbers as text, columns of JSON as their values."""
    for index, field in enumerate(table.schema):
        if pa.types.is_temporal(field.type) or pa.types.is_decimal(field.type):
            table = table.set_column(index, field.name, pc.cast(table.column(index), pa.string()))
    rows = table.to_pylist()
    for field in table.schema:
        if _holds_json(field.type):
            for row in rows:
                row[field.name] = _with_json(row[field.name], field.type)
    return rows


def _holds_json(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.JsonType):
        return True
    return any(_holds_json(kind.field(index).type) for index in range(kind.num_fields))


def _with_json(value: Any, kind: pa.DataType) -> Any:
    if value is None or not _holds_json(kind):
        return value
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {field.name: _with_json(value[field.name], field.type) for field in kind}
    return [_with_json(inner, kind.value_type) for inner in value] if isinstance(value, list) else value
