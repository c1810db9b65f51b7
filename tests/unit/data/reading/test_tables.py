"""Parquet rows: as JSON has them, streamed, and what is damaged alone is lost."""

import datetime
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtune.data.reading.blocks import NoRow, Row
from llmtune.data.reading.tables import TableBlock, parquet_blocks, table_blocks

pytestmark = pytest.mark.fast


def entries(blocks):
    return [entry for block in blocks for entry in block.entries()]


def test_rows_are_counted_from_1_through_row_groups_and_blocks(tmp_path):
    rows = [{"text": f"{number} " + "x" * 3000, "n": number} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1700)
    blocks = list(parquet_blocks("F", tmp_path / "a.parquet"))
    assert len(blocks) >= 4
    assert max(len(block.content) for block in blocks) < 3 * 2**20
    assert entries(blocks) == [Row(number, row) for number, row in enumerate(rows, start=1)]


def test_a_text_that_is_repeated_does_not_make_a_block_large(tmp_path):
    """Stored once in the file's dictionary, it comes out of it many times."""
    pq.write_table(pa.table({"text": ["x" * 100_000] * 1000}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    blocks = list(parquet_blocks("F", tmp_path / "a.parquet"))
    assert max(len(block.content) for block in blocks) < 3 * 2**20
    assert sum(1 for _ in entries(blocks)) == 1000


def test_values_are_what_json_can_hold(tmp_path):
    far = pa.array([datetime.datetime(2024, 1, 2), None], pa.timestamp("us")), pa.array([2**62, 0], pa.timestamp("s"))
    arguments = pa.StructArray.from_arrays([pa.array(['{"b": 2}'], pa.json_())], ["args"])
    table = pa.table(
        {
            "text": pa.array(["a", None], pa.large_string()),
            "near": far[0],
            "far": far[1],
            "price": [decimal.Decimal("1.50"), None],
            "day": [datetime.date(2024, 1, 2), None],
            "turns": [[{"role": "user", "tags": ["x"]}], None],
            "tools": pa.array(['[{"a": 1}]', None], pa.json_()),
            "calls": pa.ListArray.from_arrays(pa.array([0, 1, 1]), arguments, mask=pa.array([False, True])),
        }
    )
    (block,) = table_blocks("F", [table])
    first, second = block.entries()
    assert first.content.pop("far")
    assert first.content == {
        "text": "a",
        "near": "2024-01-02 00:00:00.000000",
        "price": "1.50",
        "day": "2024-01-02",
        "turns": [{"role": "user", "tags": ["x"]}],
        "tools": [{"a": 1}],
        "calls": [{"args": {"b": 2}}],
    }
    assert all(second.content.pop(name) is None for name in ("text", "near", "price", "day", "turns", "tools", "calls"))


def test_a_value_that_cannot_be_read_costs_its_row_alone(tmp_path):
    damaged = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")]
    )
    pq.write_table(pa.table({"text": damaged}), tmp_path / "a.parquet")
    assert entries(parquet_blocks("F", tmp_path / "a.parquet")) == [
        Row(1, {"text": "a"}),
        NoRow(2, "a value can't be read (UnicodeDecodeError)"),
        Row(3, {"text": "c"}),
    ]


def test_a_damaged_row_group_is_one_place_without_a_row(tmp_path):
    file = tmp_path / "a.parquet"
    rows = pa.table({"text": [f"{number}" * 50 for number in range(300)]})
    pq.write_table(rows, file, row_group_size=100, compression="zstd", use_dictionary=False)
    with pq.ParquetFile(file) as opened:
        column = opened.metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 20] = bytes(20)
    file.write_bytes(content)
    found = entries(parquet_blocks("F", file))
    lines = [entry.line for entry in found]
    assert lines == [*range(1, 102), *range(201, 301)]
    assert found[100] == NoRow(
        101, "rows 101 to 200 of the Parquet file can't be read, it is damaged (OSError); get it anew"
    )


def test_no_rows_give_no_blocks(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert list(parquet_blocks("F", tmp_path / "a.parquet")) == []
    assert list(table_blocks("F", [pa.table({"text": pa.array([], pa.string())})])) == []


def test_a_block_is_bytes_alone():
    (block,) = table_blocks("F", [pa.table({"text": ["a"]})])
    assert isinstance(block, TableBlock)
    assert isinstance(block.content, bytes)
