"""Large files: true lines, flat memory, and no more time than their size takes."""

import time
import tracemalloc

import pytest

from llmtune.data.reading.blocks import NoRow, Row
from llmtune.data.reading.csv_rows import csv_blocks
from llmtune.data.reading.json_arrays import json_blocks
from llmtune.data.reading.lines import line_blocks, paragraph_blocks


def test_line_400000_of_a_file_of_37_mb_is_named_right(tmp_path, opened):
    row = b'{"text": "%s"}\n' % (b"x" * 50)
    bad = b'{"text": "Schmidt\n'
    (tmp_path / "a.jsonl").write_bytes(row * 399_999 + bad + row * 200_000)
    assert 37e6 < (tmp_path / "a.jsonl").stat().st_size < 40e6
    blocks = list(opened(tmp_path / "a.jsonl").blocks())
    assert 10 < len(blocks) < 30
    reached = next(block for block in reversed(blocks) if block.first_line <= 400_000)
    (fault,) = (entry for entry in reached.entries() if isinstance(entry, NoRow))
    assert fault == NoRow(400_000, "not valid JSON: Unterminated string starting at at column 10")
    assert blocks[-1].first_line + blocks[-1].content.count(b"\n") == 600_001


BLOCKS = {
    "jsonl": (line_blocks, b'{"text": "%s"}\n'),
    "json": (json_blocks, b'{"text": "%s"},\n\n'),
    "txt": (lambda path, chunks: paragraph_blocks(path, chunks, "text"), b"%s\n\n"),
    "csv": (lambda path, chunks: csv_blocks(path, chunks, ","), b'a,"%s"\n'),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_memory_stays_flat_on_100_mb(name):
    blocks_of, row = BLOCKS[name]
    chunk = row % (b"x" * 4000) * 250

    def chunks():
        yield b"[" if name == "json" else b"n,text\n" if name == "csv" else b""
        yield from (chunk for _ in range(100))

    tracemalloc.start()
    count = sum(1 for block in blocks_of("F", chunks()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 30
    assert peak < 25e6


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_a_line_of_100_mb_takes_no_more_than_its_share(tmp_path, opened, name):
    text = "x" * 100_000_000
    row = {"a.jsonl": '{"text": "%s"}\n{"text": "y"}', "a.json": '[{"text": "%s"},\n{"text": "y"}]', "a.txt": "%s\n\ny"}
    (tmp_path / name).write_text(row[name] % text)
    began = time.process_time()
    found = [entry for block in opened(tmp_path / name).blocks() for entry in block.entries()]
    assert time.process_time() - began < 10
    assert found == [Row(1, {"text": text}), Row(3 if name == "a.txt" else 2, {"text": "y"})]
