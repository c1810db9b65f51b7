"""Rows have their true lines; each place without one has its line and a reason that quotes nothing."""

import gzip
import json
import os

import pyarrow as pa
import pytest

from llmtune.data.reading import json_arrays
from llmtune.data.reading.blocks import NoRow, Row
from llmtune.data.reading.json_arrays import json_blocks
from llmtune.data.reading.json_rows import MOST_LEVELS, line_entry
from llmtune.data.reading.lines import paragraph_blocks

pytestmark = pytest.mark.fast

SECRET = "Schmidt"


def lines_and_rows(entries):
    return [(entry.line, entry.content) for entry in entries if isinstance(entry, Row)]


def faults(entries):
    found = [(entry.line, entry.reason) for entry in entries if isinstance(entry, NoRow) and entry.is_mistake]
    assert SECRET not in str(found)
    return found


def blank_lines(entries):
    return [entry.line for entry in entries if isinstance(entry, NoRow) and not entry.is_mistake]


def nested(levels):
    return '{"a":' * levels + "1" + "}" * levels


def test_jsonl_keeps_lines_through_a_mark_crlf_blank_lines_and_a_missing_last_newline(write, read):
    found = read(
        write("a.jsonl", '\ufeff{"text": "one"}\r\n\r\n{"content": "two\u2028x\x85y"}\n \u3000\n{"text": "three"}')
    )
    assert lines_and_rows(found) == [(1, {"text": "one"}), (3, {"content": "two\u2028x\x85y"}), (5, {"text": "three"})]
    assert blank_lines(found) == [2, 4]
    assert blank_lines(read(write("b.jsonl", '{"text": "one"}\n'))) == []
    assert blank_lines(read(write("c.jsonl", "\n\n"))) == [1, 2]


def test_files_put_together_keep_their_marks_out(write, read):
    assert lines_and_rows(read(write("a.jsonl", '\ufeff{"text": "a"}\n\ufeff{"text": "b"}\n'))) == [
        (1, {"text": "a"}),
        (2, {"text": "b"}),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f'{{"text": "{SECRET}}}', "not valid JSON: Unterminated string starting at at column 10"),
        (f'{{"text": "{SECRET}",}}', "not valid JSON: "),
        (f'{{"text": "{SECRET}"}} x', "not valid JSON: Extra data at column 21"),
        (f"{{'text': '{SECRET}'}}", "not valid JSON: Expecting property name enclosed in double quotes at column 2"),
        (SECRET, "not valid JSON: Expecting value at column 1"),
        ("[" * 100_000, "not valid JSON: nested too deeply, more than 100 levels"),
        (nested(MOST_LEVELS + 1), "not valid JSON: nested too deeply, more than 100 levels"),
        ('{"text": ' + "9" * 5000 + "}", "not valid JSON: a number is too long"),
        (f'{{"text": "{SECRET}\0"}}', "holds a zero byte, so the file is binary or damaged, not text"),
        (f'{{"text": "{SECRET}\t"}}', "not valid JSON: Invalid control character at at column 18"),
    ],
)
def test_a_bad_line_is_named_and_not_quoted(write, read, row, reason):
    found = read(write("a.jsonl", f'{{"text": "fine"}}\n{row}\n{{"text": "fine"}}\n{row}\n'))
    assert [line for line, _ in lines_and_rows(found)] == [1, 3]
    assert [line for line, _ in faults(found)] == [2, 4]
    assert faults(found)[0][1].startswith(reason)


@pytest.mark.parametrize(
    ("row", "content"),
    [
        (nested(MOST_LEVELS), json.loads(nested(MOST_LEVELS))),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"text": "\\ud83d"}', {"text": "\ud83d"}),
        ('{"a": 18446744073709551617}', {"a": 18446744073709551617}),
        ('{"a": 1e999, "b": -Infinity}', {"a": float("inf"), "b": float("-inf")}),
        ("[1, 2]", [1, 2]),
    ],
)
def test_odd_json_is_a_row_as_python_reads_it(row, content):
    assert line_entry(7, row.encode()) == Row(7, content)


def test_a_json_array_has_the_line_of_each_row(write, read):
    found = read(write("a.json", '[\n  {"text": "one"},\n\n  {\n   "text": "two"\n  }, {"text": "three"}\n]\n'))
    assert [(line, row["text"]) for line, row in lines_and_rows(found)] == [(2, "one"), (4, "two"), (6, "three")]
    assert faults(found) == []


STOPPED = "not valid JSON, nothing after it was read"


@pytest.mark.parametrize(
    ("content", "rows", "line", "reason"),
    [
        ('[\n{"text": "x"}\n{"text": "y"}]', 1, 3, f"{STOPPED}: a comma is missing between two rows"),
        ('[\n{"text": "x"},\n{"text": }]', 1, 3, f"{STOPPED}: Expecting value at column 10"),
        ('[\n{"text": "x"},\n{"text": "y', 1, 3, f"{STOPPED}: Unterminated string starting at at column 10"),
        ('[\n{"text": "x"}\n\n', 1, 2, "not valid JSON: the closing ] of the array is missing"),
        ('[{"text": "x"}]\n[]', 1, 2, "not valid JSON: there is more after the array's closing ]"),
        ('[\n{"text": "x"},\n' + "[" * 5000, 1, 3, f"{STOPPED}: nested too deeply, more than 100 levels"),
        ('[{"text": "x"},\n' + nested(101) + ',\n{"text": "y"}]', 2, 2, "not valid JSON: nested too deeply, more than"),
        ('{"data": [{"text": "x"}]}', 0, 1, "the file is one object; store the array under `data` as the whole file"),
        ('"x"', 0, 1, "a JSON file must hold an array of rows, or one row a line"),
        ('[\n{"text": "a"},\n{"text":\n"\xff"},\n{"text": "b"}]', 2, 4, "isn't UTF-8; if the file is Latin-1"),
        ('[\n{"text": "a"},\n{"text": \xff}]', 1, 3, "isn't UTF-8; if the file is Latin-1"),
        ('[\n{"text": "a\0"}]', 0, 2, "holds a zero byte"),
    ],
)
def test_a_broken_json_file_is_named_by_line(write, read, content, rows, line, reason):
    found = read(write("a.json", content.encode("latin-1")))
    assert len(lines_and_rows(found)) == rows
    ((at, why),) = faults(found)
    assert at == line
    assert why.startswith(reason)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("how", [{}, {"ensure_ascii": False, "indent": 1}])
def test_where_the_pieces_of_a_file_end_changes_nothing(monkeypatch, size, how):
    """The array is given in pieces that cut characters, escapes, numbers and names in two."""
    monkeypatch.setattr(json_arrays, "_LEAST", 1)
    rows = [{"text": 'ü\u2028\\" \U0001f600', "n": -1.5e-3, "t": True}, {"text": "\n\t"}, 123456, {"x": [[], {}]}] * 3
    content = json.dumps(rows, **how).encode()
    (block,) = json_blocks("F", (content[start : start + size] for start in range(0, len(content), size)))
    assert [entry.content for entry in block.entries()] == rows


def test_blank_lines_part_the_examples_of_a_txt_file(write, read):
    found = read(write("a.txt", "\n\none\r\n  still one\r\n \t\ntwo\n\u3000\n\n\xa0three"))
    assert lines_and_rows(found) == [
        (3, {"text": "one\n  still one"}),
        (6, {"text": "two"}),
        (9, {"text": "\xa0three"}),
    ]


def test_a_bad_line_costs_its_paragraph_alone(write, read):
    found = read(write("a.txt", b"ok\xc3\xa4\n\none\ntwo \xff\n\nthree\n\nfour \0 x\n"))
    assert lines_and_rows(found) == [(1, {"text": "okä"}), (6, {"text": "three"})]
    assert [line for line, _ in faults(found)] == [4, 8]


def test_paragraphs_come_out_whole_however_the_file_is_cut():
    text = "".join(f"line {number}\n" + "\n" * (number % 3 == 0) for number in range(300_000)).encode()
    pieces = [text[start : start + 1_000_001] for start in range(0, len(text), 1_000_001)]
    blocks = list(paragraph_blocks("F", pieces, "text"))
    assert len(blocks) > 1
    found = [entry.content["text"] for block in blocks for entry in block.entries()]
    assert found == text.decode().strip("\n").split("\n\n")


def test_quoted_csv_values_hold_commas_quotes_and_line_ends(write, read):
    found = read(write("a.csv", 'id,text\r\n1,"a, ""b""\r\nc"\r\n2,plain\r\n\r\n3,last'))
    assert [(line, row["text"]) for line, row in lines_and_rows(found)] == [
        (2, 'a, "b"\r\nc'),
        (4, "plain"),
        (6, "last"),
    ]
    assert blank_lines(found) == [5]


UNCLOSED = "not valid CSV, nothing after it was read: a quote that opens in this row isn't closed"


@pytest.mark.parametrize(
    ("content", "lines", "found"),
    [
        (
            "id,text\na,b\nc\nd,e\n",
            [2, 4],
            [(3, "1 values where the header has 2; quote values that hold the delimiter")],
        ),
        ('text\nfine\n"open\nand on\n', [2], [(3, UNCLOSED)]),
        ('text\n"a"b\nfine\n', [3], [(2, "not valid CSV: a closing quote is followed by more; write quotes inside a")]),
        ("text\na\rb\nfine\n", [3], [(2, "not valid CSV: a carriage return stands alone; end lines with LF or CR LF")]),
        ("text,text\na,b\n", [], [(1, "the header names a column twice")]),
        ("text\n\xff\nfine\n\0\n", [3], [(2, "isn't UTF-8; if"), (4, "holds a zero byte")]),
    ],
)
def test_a_broken_csv_row_is_named_by_line(write, read, content, lines, found):
    entries = read(write("a.csv", content.encode("latin-1")))
    assert [line for line, _ in lines_and_rows(entries)] == lines
    assert [line for line, _ in faults(entries)] == [line for line, _ in found]
    for (_, reason), (_, expected) in zip(faults(entries), found, strict=True):
        assert reason.startswith(expected)


def pack(compression, content):
    return gzip.compress(content) if compression == "gzip" else pa.compress(content, codec="zstd", asbytes=True)


def noise(count):
    """Lines that don't compress to nothing."""
    return [json.dumps({"text": os.urandom(100).hex()}) for _ in range(count)]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv"])
def test_a_file_that_is_cut_short_gives_its_whole_rows_and_the_last_line_reached(write, read, compression, name):
    lines = noise(8000)
    joined = {
        "a.jsonl": "\n".join(lines),
        "a.json": "[\n" + ",\n".join(lines) + "]",
        "a.txt": "\n\n".join(lines),
        "a.csv": "\n".join(["text", *(json.loads(line)["text"] for line in lines)]),
    }[name].encode()
    packed = pack(compression, joined)
    found = read(write(name, packed[: len(packed) // 2]), format=name[2:])
    rows = lines_and_rows(found)
    num_lines = rows[-1][0]
    assert 3000 < len(rows) < 5000
    assert [row for row in rows if row[0] > num_lines] == []
    whole = read(write(f"whole-{name}", joined), format=name[2:])
    assert found[: len(rows)] == whole[: len(rows)]
    ((line, reason),) = faults(found)
    assert reason == f"the file is cut short here, its {compression} data have no end; get it whole"
    assert num_lines < line <= num_lines + 2


def test_damaged_compressed_data_end_the_rows_near_the_damage(write, read):
    lines = noise(8000)
    packed = bytearray(gzip.compress("\n".join(lines).encode()))
    packed[-6] ^= 1  # of the check sum
    found = read(write("a.jsonl.gz", bytes(packed)))
    num_rows = len(lines_and_rows(found))
    assert 8000 - 64 * 1024 / 200 < num_rows < 8000
    assert faults(found) == [
        (num_rows + 1, "the gzip data are damaged at about this line, nothing after it was read; get the file anew")
    ]
    found = read(write("b.jsonl.gz", gzip.compress("\n".join(lines).encode()) + b"more"))
    assert len(faults(found)) == 1
