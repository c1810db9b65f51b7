"""Whatever a file holds, it is read, refused or named by line; and valid rows keep their text just as it stood."""

import csv
import gzip
import io
import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.config.data import FilesConfig
from llmtune.data.reading.blocks import Entry, NoRow, Row
from llmtune.data.reading.sources import open_sources
from llmtune.errors import DataError

NUM_EXAMPLES = int(os.environ.get("LLMTUNE_FUZZ_EXAMPLES", "300"))
fuzzed = settings(
    max_examples=NUM_EXAMPLES,
    deadline=30_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

FORMATS = ("jsonl", "json", "txt", "csv", "parquet")
NAMES = ("a.jsonl", "a.json", "a.txt", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.zst", "a")
SECRET = "Schmidt"
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
PIECES = st.sampled_from(
    [
        *(b"\n", b"\r\n", b"\n\n", b"{", b"}", b"[", b"]", b'"', b",", b":", b";", b"\t", b"\\", b"\\u00", b"\\ud83d"),
        *(b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xe4", b"\xf0\x9f", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"),
        *(b'{"text": "Schmidt"}', b'{"text": "Schmidt', b'[{"text": "x"}', b"text,id\n", b"NaN", b"1e999", b"9" * 5000),
        *(b"[" * 2000, b'{"a":' * 150, b"Schmidt", b'"Schmidt",', b"null", b"-", b"\xc3\xbc" * 3, b" ", b"PK\x03\x04"),
    ]
)
BYTES = st.lists(PIECES | st.binary(max_size=12), max_size=25).map(b"".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read(folder: Path, name: str, content: bytes, file_format: str = "auto") -> list[Entry]:
    """Every entry, the same in two passes and in another process."""
    (folder / name).write_bytes(content)
    (source,) = open_sources(FilesConfig(path=str(folder / name), format=file_format), folder / "cache")
    first = [entry for block in source.blocks() for entry in block.entries()]
    second = [entry for block in source.blocks() for entry in pickle.loads(pickle.dumps(block)).entries()]
    assert repr(first) == repr(second)
    return first


def packed(content: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(content)
    return pa.compress(content, codec="zstd", asbytes=True) if how == "zstd" else content


def check(entries: list[Entry], num_lines: int) -> None:
    lines = [entry.line for entry in entries]
    assert lines == sorted(lines)
    assert all(1 <= line <= num_lines for line in lines)
    assert SECRET not in str([entry.reason for entry in entries if isinstance(entry, NoRow)])


@fuzzed
@given(BYTES, st.sampled_from(NAMES), st.sampled_from(["auto", *FORMATS]), st.sampled_from(["", "gzip", "zstd"]))
def test_any_bytes_are_read_refused_or_named(folder, content, name, file_format, how):
    try:
        entries = read(folder, name, packed(content, how), file_format)
    except DataError as error:
        assert SECRET not in str(error)
        assert "\n" not in str(error)
    else:
        check(entries, content.count(b"\n") + 1)


def as_file(texts: list[str], file_format: str) -> bytes:
    rows = [{"text": text, "n": str(number)} for number, text in enumerate(texts)]
    if file_format == "jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows)).encode()
    if file_format == "json":
        return json.dumps(rows, ensure_ascii=len(rows) % 2 == 0, indent=len(rows) % 3 or None).encode()
    if file_format == "csv":
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, ["text", "n"], delimiter=",;\t|"[len(rows) % 4])
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue().encode()
    if file_format == "txt":
        return "\n\n".join(texts).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def fits(text: str, file_format: str) -> bool:
    """Whether a format can hold a text just as it is."""
    if file_format == "csv":
        return "\0" not in text
    if file_format == "txt":
        lines = text.split("\n")
        return all(line.strip() and not line.endswith("\r") and "\0" not in line for line in lines)
    return True


@fuzzed
@given(
    st.lists(TEXT, min_size=1, max_size=8),
    st.sampled_from(FORMATS),
    st.sampled_from(["", "gzip", "zstd"]),
    st.booleans(),
    st.sampled_from(["", "\n"]),
)
def test_valid_rows_keep_their_text_exactly(folder, texts, file_format, how, with_mark, end):
    texts = [text for text in texts if fits(text, file_format)] or ["x"]
    content = as_file(texts, file_format)
    if file_format != "parquet":
        mark = b"\xef\xbb\xbf" if with_mark or texts[0].startswith("\ufeff") else b""
        content = packed(mark + content + (end.encode() if file_format != "csv" else b""), how)
    entries = read(folder, f"valid.{file_format}", content, file_format)
    assert all(isinstance(entry, Row) for entry in entries), entries
    assert [entry.content["text"] for entry in entries] == texts


@fuzzed
@given(
    st.lists(TEXT, min_size=1, max_size=12),
    st.sampled_from(FORMATS),
    st.sampled_from(["", "gzip", "zstd"]),
    st.tuples(st.sampled_from(["cut", "changed", "put in"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
)
def test_a_damaged_file_is_read_refused_or_named(folder, texts, file_format, how, damaged):
    damage, where, noise = damaged
    content = packed(as_file(texts, file_format), "" if file_format == "parquet" else how)
    at = int(where * len(content))
    after = {"cut": b"", "changed": noise + content[at + len(noise) :], "put in": noise + content[at:]}[damage]
    try:
        entries = read(folder, f"damaged.{file_format}", content[:at] + after)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        check(entries, len(content) * 20 + 100)


@fuzzed
@given(st.lists(TEXT, min_size=1, max_size=12), st.lists(BYTES, min_size=1, max_size=4), st.randoms())
def test_bad_lines_cost_themselves_alone(folder, texts, bad, random):
    """In JSONL, whatever other lines hold, a good line's row is there with its line."""
    good = [json.dumps({"text": text}).encode() for text in texts]
    lines = good + [line.replace(b"\n", b"").replace(b"\xff\xfe", b"") for line in bad]
    random.shuffle(lines)
    lines.insert(0, b'{"text": "first"}')
    expected = {(number, line) for number, line in enumerate(lines, start=1) if line in good}
    try:
        entries = read(folder, "lines.jsonl", b"\n".join(lines))
    except DataError as error:
        assert "looks like" in str(error) or "binary" in str(error)
        return
    assert {(number, json.dumps({"text": json.loads(line)["text"]})) for number, line in expected} <= {
        (entry.line, json.dumps(entry.content)) for entry in entries if isinstance(entry, Row)
    }
