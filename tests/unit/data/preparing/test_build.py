"""What sources, lengths and changes on disk make of the tables and their account."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtune.config.data import FilesConfig
from llmtune.data.encoding.description import describe_tokenizer
from llmtune.data.preparing import build as module
from llmtune.data.preparing.encode import Dropped, EncodedBlock, Lost
from llmtune.data.preparing.examples import BlockTask, ExampleReader
from llmtune.data.preparing.prepared import prepare_data
from llmtune.data.preparing.scan import ScannedBlock, Scanner, gather
from llmtune.data.reading.blocks import NoRow, Row
from llmtune.data.reading.ready import ReadyBlock
from llmtune.data.reading.sources import Source
from llmtune.data.shaping.outcome import fault_in
from llmtune.errors import DataError

pytestmark = pytest.mark.fast
OPTIONS = {"find_near_duplicates": False, "validation_fraction": 0.1, "test_fraction": 0.2}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def scanned(*blocks: ReadyBlock) -> list[ScannedBlock]:
    scanner = Scanner(ExampleReader((FilesConfig(),), masks=False), 0, finds_personal=False, signs=False)
    return [scanner(BlockTask(0, block)) for block in blocks]


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.parquet"])
def test_a_source_without_a_row_is_refused(name, write, plain_tokenizer, tmp_path):
    path = write(name, {"a.json": "[]", "a.csv": "prompt,completion\n", "a.parquet": ""}[name])
    if name == "a.parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match=rf"{name}:1: no example in this source \(it is empty\)"):
        prepare_data(FilesConfig(path=path), plain_tokenizer, "t", tmp_path)


def test_columns_have_their_types_without_and_with_rows():
    none = gather([], [False], None)
    assert none.columns.exact.shape == (0, 2)
    row = ReadyBlock("f", (Row(3, {"text": "a b"}),))
    some = gather(scanned(row, ReadyBlock("g", (NoRow(1, "no"),)), row), [False], None)
    assert {name: column.dtype for name, column in vars(none.columns).items()} == {
        name: column.dtype for name, column in vars(some.columns).items()
    }
    assert (some.columns.line.tolist(), some.columns.source.tolist()) == ([3, 3], [0, 0])
    assert (some.block_sizes, some.file.tolist(), some.paths) == ([1, 0, 1], [0, 0], ["f", "g"])
    assert [some.where(row) for row in range(2)] == ["f:3", "f:3"]
    assert gather(scanned(row), [True], None).columns.is_eval.tolist() == [True]


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ("not valid JSON: Extra data at column 21", "not valid JSON: Extra data"),
        ("turn 17 of `messages` has no `content`", "turn N of `messages` has no `content`"),
        ("rows 101 to 1,200 of the file can't be read", "rows N to N of the file can't be read"),
        ("3 cells, the header has 12", "N cells, the header has N"),
        ("`column_2` is null; `3` too", "`column_2` is null; `3` too"),
        ("not UTF-8, such as \\ud83d, see 1.5", "not UTF-8, such as \\ud83d, see N.5"),
    ],
)
def test_a_fault_is_counted_whatever_its_numbers(reason, fault):
    assert fault_in(reason) == fault


def test_bad_rows_are_counted_by_fault_and_listed_in_full():
    rows = tuple(NoRow(line, f"turn {line} of it is bad at column {line}") for line in range(1, 301))
    empty = (NoRow(301, "fewer than 3 of them", is_mistake=False),)
    scan = gather(scanned(ReadyBlock("f", rows + empty)), [False], None)
    assert scan.bad == {"turn N of it is bad": 300}
    assert scan.sources[0].dropped == {"turn N of it is bad": 300, "fewer than 3 of them": 1}
    assert scan.listed_bad[16] == "f:17: turn 17 of it is bad at column 17"


def test_names_of_unread_columns_are_bounded_in_each_source():
    blocks = [
        ReadyBlock("f", tuple(Row(n, {"text": "a", f"column {n:05}": 1}) for n in range(first, first + 150)))
        for first in range(0, 600, 150)
    ]
    found = gather(scanned(*blocks), [False], None).sources[0].unread_columns
    assert found == {f"column {n:05}" for n in range(200)}


def test_rows_that_tokenising_loses_take_a_few_bytes_each():
    lost = Lost()
    assert (lost.rows.tolist(), lost.by_reason()) == ([], {})
    for number in range(3):
        dropped = [Dropped(row, row + 1, "too long", is_mistake=False) for row in range(1000)]
        dropped.append(Dropped(1000, 9, f"refused: turn {number}", is_mistake=True))
        lost.add(EncodedBlock(f"f{number}", {}, dropped), 2000 * number)
    assert len(lost.rows) == 3003
    assert lost.rows[[0, 1001, 3002]].tolist() == [0, 2000, 5000]
    assert lost.by_reason() == {"too long": 3000, "refused: turn N": 3} == lost.by_reason(np.ones(6000, bool))
    assert lost.by_reason(np.arange(6000) < 2000) == {"too long": 1000, "refused: turn N": 1}
    assert (lost.bad, lost.listed_bad[1]) == ({"refused: turn N": 3}, "f1:9: refused: turn 1")


def words(number, count, of=10**6):
    return " ".join(map(str, np.random.default_rng(number).integers(0, of, count)))


def test_rows_with_a_common_prompt_fill_every_split(write, plain_tokenizer, tmp_path):
    prompt = words(0, 400)
    path = write("a.jsonl", lines({"prompt": prompt, "completion": words(n, 8)} for n in range(1, 301)))
    data = prepare_data(FilesConfig(path=path, max_seq_len=4096), plain_tokenizer, "t", tmp_path)
    kept = data.report["rows"]["kept"]
    assert sum(kept.values()) == 300
    assert 15 < kept["test"] < 50
    (said,) = [warning for warning in data.report["warnings"] if "common prompt" in warning]
    assert said.startswith("300 of 300 rows share most of their words with many others (a common prompt?), so they ")
    assert "data.near_duplicate_threshold" in said and "data.duplicates=near" in said
    assert data.report["duplicates"] == {"exact": 0, "normalised": 0, "near": 0, "num_groups": 0, "listed": []}


def test_a_prompt_that_the_test_file_shares_leaves_the_training_rows(write, plain_tokenizer, tmp_path):
    rows = [{"prompt": words(0, 400), "completion": words(n, 8)} for n in range(1, 121)]
    path, held_out = write("a.jsonl", lines(rows[:101])), write("e.jsonl", lines(rows[100:]))
    config = FilesConfig(path=path, eval_path=held_out, max_seq_len=4096)
    report = prepare_data(config, plain_tokenizer, "t", tmp_path).report
    assert report["rows"]["dropped"] == {"also in the test file": 1}
    assert (report["overlap"]["exact"], report["overlap"]["near"]) == (1, 0)


def test_the_test_set_is_too_small_where_tokenising_makes_it_so(write, plain_tokenizer, tmp_path):
    path = write("a.jsonl", lines({"prompt": "p" * (n % 3) * 50, "completion": f"x{n}"} for n in range(200)))
    whole = prepare_data(FilesConfig(path=path, **OPTIONS), plain_tokenizer, "t", tmp_path).report
    assert (whole["too_few_test"], whole["warnings"]) == (False, [])
    assert whole["rows"]["kept"]["test"] >= 20
    report = prepare_data(FilesConfig(path=path, max_seq_len=20, **OPTIONS), plain_tokenizer, "t", tmp_path).report
    kept = report["rows"]["kept"]["test"]
    assert 0 < kept < 20
    assert report["too_few_test"]
    assert report["warnings"][0].startswith(f"the test set holds {kept} example")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("change", ["more rows", "fewer rows", "more blocks", "no rows"])
def test_a_file_that_changes_in_between_is_told(change, num_workers, write, plain_tokenizer, tmp_path, monkeypatch):
    path = write("a.jsonl", lines({"text": f"text {n}"} for n in range(100)))
    decide = module.decide

    def decide_slowly(*arguments):
        count = {"more rows": 130, "fewer rows": 70, "more blocks": 12_000, "no rows": 0}[change]
        Path(path).write_text(lines({"text": f"text {n}"} for n in range(count)))
        return decide(*arguments)

    monkeypatch.setattr(module, "decide", decide_slowly)
    # a file of another time is refused before it is read; that it changes while it is read must be told as well
    monkeypatch.setattr("llmtune.data.reading.files.DataFile._check_unchanged", lambda self: None)
    with pytest.raises(DataError, match=r"a\.jsonl: the file changed while it was read"):
        prepare_data(FilesConfig(path=path, num_workers=num_workers, **OPTIONS), plain_tokenizer, "t", tmp_path)


def test_bounds_of_tokens_hold_for_the_training_rows_alone(write, plain_tokenizer, tmp_path):
    texts = [{"text": f"{n:02}" + "x" * n} for n in range(5, 60)]
    others = ({"text": f"e{row['text']}"} for row in texts)
    path, held_out = write("a.jsonl", lines(texts)), write("e.jsonl", lines(others))
    bounds = {"min_tokens": 20, "max_tokens": 50, "max_seq_len": 40, "validation_fraction": 0.1}

    def sources(**options):
        config = FilesConfig(path=path, eval_path=held_out, find_near_duplicates=False, **bounds, **options)
        data = prepare_data(config, plain_tokenizer, "t", tmp_path)
        return data, [source["dropped"] for source in data.report["sources"]]

    data, (train, test) = sources(overlong="drop")
    assert set(train) == {
        "fewer than 20 tokens (data.min_tokens)",
        "more than 50 tokens (data.max_tokens)",
        "longer than max_seq_len",
    }
    assert (test, len(data.test)) == ({}, 55)
    assert data.report["splits"]["test"]["num_truncated"] > 10
    assert data.test.num_tokens.max() == 40
    data, (train, test) = sources(overlong="split")
    assert test == {} and len(data.test) > 55
    assert data.report["splits"]["test"]["num_truncated"] == 0


@pytest.mark.parametrize(("size", "expected"), [(100, 0), (20_000_000, 7)])
def test_much_data_of_any_origin_takes_all_cores(size, expected, monkeypatch, chat_tokenizer):
    monkeypatch.setattr(module, "usable_cores", lambda: 7)
    source = Source("hub", "d", {"kind": "hub"}, FilesConfig(), list, lambda: size)
    description = describe_tokenizer(chat_tokenizer)
    half = dataclasses.replace(source, num_bytes=lambda: size // 2)
    for sources in ([source], [half, half]):
        assert module._num_workers(FilesConfig(), sources, description) == expected
    assert module._num_workers(FilesConfig(num_workers=3), [source], description) == 3
