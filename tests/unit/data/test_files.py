"""Files become records with true line numbers; what can't be read is named and never quoted."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtune.data.files import read_file
from llmtune.errors import DataError

pytestmark = pytest.mark.fast


def lines_and_texts(path, file_format="auto"):
    return [(record.source_line, record.text) for record in read_file(path, file_format).records]


def problems(path, file_format="auto"):
    with pytest.raises(DataError) as caught:
        read_file(path, file_format)
    return [problem.replace(path, "F") for problem in caught.value.problems]


def test_jsonl_keeps_lines_through_mark_crlf_blank_lines_and_a_missing_last_newline(write):
    path = write("a.jsonl", '\ufeff{"text": "one"}\r\n\r\n{"content": "two\u2028x"}\n{"text": " "}\n{"text": "three"}')
    found = read_file(path)
    assert lines_and_texts(path) == [(1, "one"), (3, "two\u2028x"), (5, "three")]
    assert found.skipped == {"blank line": 1, "empty text": 1}
    assert found.origin["rows"] == 5
    assert found.origin["forms"] == {"text": 2, "content": 1}


def test_a_last_newline_is_no_blank_line(write):
    assert read_file(write("a.jsonl", '{"text": "one"}\n')).skipped == {}


def test_shapes_of_a_row(write):
    turns = [{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "content": "ho"}]
    rows = [{"prompt": "p", "completion": "c", "id": 7}, {"messages": turns}, {"text": "t", "prompt": None}]
    found = read_file(write("a.jsonl", "\n".join(json.dumps(row) for row in rows)))
    pair, conversation, text = found.records
    assert (pair.prompt, pair.completion, pair.text) == ("p", "c", None)
    assert conversation.messages == ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"})
    assert text.text == "t"
    assert found.origin["unread_columns"] == ["id", "prompt"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"text": 3}', "`text` must be text, not a number"),
        ('{"text": null}', "`text` is null"),
        ('{"prompt": "SECRET"}', "`prompt` stands without `completion`"),
        ('{"instruction": "SECRET"}', "rename `instruction`"),
        ('["SECRET"]', "a row must be an object"),
        ('{"text": "SECRET}', "not valid JSON: Unterminated string"),
        ('{"text": "SECRET \\ud83d"}', "half of a surrogate pair"),
        ('{"messages": []}', "`messages` is empty"),
        ('{"messages": [{"from": "human", "value": "SECRET"}]}', "rename them `role` and `content`"),
        ('{"messages": [{"role": "user", "content": ["SECRET"]}]}', "turn 1 of `messages` has a `content` that is a"),
        ('{"messages": [{"role": "assistant", "content": "SECRET"}]}', "put a user turn before it"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
    ],
)
def test_a_bad_row_is_named_by_line_and_not_quoted(write, row, reason):
    (problem,) = problems(write("a.jsonl", f'{{"text": "fine"}}\n{row}\n'))
    assert problem.startswith("F:2: ")
    assert reason in problem
    assert "SECRET" not in problem


def test_all_problems_come_at_once_and_the_listing_ends_at_20(write):
    found = problems(write("a.jsonl", '{"text": 1}\n' * 25))
    assert len(found) == 21
    assert found[19].startswith("F:20: ")
    assert found[20] == "... and 5 more problems like these"
    assert len(problems(write("b.jsonl", '{"text": 1}\n' * 20))) == 20


def test_a_json_array_has_the_line_of_each_row(write):
    path = write("a.json", '[\n  {"text": "one"},\n\n  {\n   "text": "two"\n  }, {"text": "three"}\n]\n')
    assert lines_and_texts(path) == [(2, "one"), (4, "two"), (6, "three")]


def test_rows_one_a_line_are_read_under_a_json_name(write):
    assert lines_and_texts(write("a.json", '{"text": "one"}\n{"text": "two"}\n')) == [(1, "one"), (2, "two")]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[\n{"text": "x"}\n{"text": "y"}]', "F:3: not valid JSON, nothing after it was read: a comma is missing"),
        ('[\n{"text": "x"},\n{"text": }]', "F:3: not valid JSON, nothing after it was read: Expecting value"),
        ('[\n{"text": "x"}\n', "F:2: not valid JSON: the closing ] of the array is missing"),
        ('[{"text": "x"}]\n[]', "F:2: not valid JSON: there is more after"),
        ('{"data": [{"text": "x"}]}', "F:1: the file is one object; store the array under `data`"),
        ('"x"', "F:1: a JSON file must hold an array of rows"),
    ],
)
def test_a_broken_json_file_is_named_by_line(write, content, problem):
    assert problems(write("a.json", content))[0].startswith(problem)


def test_blank_lines_part_the_examples_of_a_txt_file(write):
    path = write("a.txt", "\n\none\r\n  still one\r\n \t\ntwo")
    assert lines_and_texts(path) == [(3, "one\n  still one"), (6, "two")]


def test_quoted_csv_values_hold_commas_quotes_and_line_ends(write):
    path = write("a.csv", 'id,text\r\n1,"a, ""b""\r\nc"\r\n2,plain\r\n\r\n3,last')
    assert lines_and_texts(path) == [(2, 'a, "b"\r\nc'), (4, "plain"), (6, "last")]
    assert read_file(path).skipped == {"blank line": 1}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("text\na,b\nc\n", "F:2: 2 values where the header has 1"),
        ('text\nfine\n"open\nand on\n', "F:3: not valid CSV: unexpected end of data"),
        ("id;text\n1;x\n", "F:1: the header names none of text, content, prompt and completion; the columns seem"),
        ("text,text\na,b\n", "F:1: the header names a column twice"),
    ],
)
def test_a_broken_csv_file_is_named_by_line(write, content, problem):
    assert problems(write("a.csv", content))[0].startswith(problem)


def test_parquet_rows_are_counted_from_1(tmp_path, write):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["p", "q"], "completion": ["c", "d"], "n": [1, 2]}), path)
    assert [(record.source_line, record.completion) for record in read_file(str(path)).records] == [(1, "c"), (2, "d")]
    content = path.read_bytes()
    assert "damaged" in problems(write("b.parquet", content[: len(content) // 2]))[0]
    assert "isn't a Parquet file" in problems(write("c.parquet", "text"))[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"text": "ä"}'.encode("utf-16"), "F:1: the file is UTF-16, only UTF-8 is read; convert it with: iconv"),
        ('{"text": "a"}'.encode("utf-16-le"), "F:1: the file looks like UTF-16 without a mark"),
        ('{"text": "ä"}'.encode("utf-32"), "F:1: the file is UTF-32"),
        ('{"text": "a"}\n{"text": "ä"}'.encode("latin-1"), "F:2: byte 0xe4 isn't UTF-8, the file looks like Latin-1"),
        (b'{"text": "a"}\n{"text": "b\x00"}', "F:2: the file holds a zero byte"),
        (b"\x1f\x8b\x08\x00", "F:1: this is a binary file (gzip)"),
        (b"", "F:1: no example in this file (it is empty)"),
        (b"\n\n", "F:1: no example in this file (2 skipped: blank line)"),
    ],
)
def test_other_encodings_and_binary_files_are_refused_by_name(write, content, reason):
    assert problems(write("a.jsonl", content))[0].startswith(reason)


def test_a_missing_file_suggests_the_nearest(write, tmp_path):
    write("train.jsonl", "{}")
    with pytest.raises(
        DataError, match=r"data\.path=.*trian\.jsonl: there is no such file; did you mean .*train\.jsonl"
    ):
        read_file(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        read_file(str(tmp_path))
    with pytest.raises(DataError, match=r"the ending \.xyz doesn't tell the format.*data\.format"):
        read_file(write("a.xyz", "x"))
    with pytest.raises(
        DataError, match=r"^data\.eval_path=.*the ending \.xyz doesn't tell the format.*; rename the file$"
    ):
        read_file(write("a.xyz", "x"), key="data.eval_path")
    assert lines_and_texts(write("b.xyz", "x"), "txt") == [(1, "x")]
