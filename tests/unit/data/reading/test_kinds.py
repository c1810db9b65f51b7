"""A file is read for what it holds, whatever its name; what can't be read is named with its cure."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtune.data.reading.blocks import NoRow, Row

pytestmark = pytest.mark.fast

TEXTS = ['one "quoted", with a comma', "two\nlines; ü\u2028x", " 3 "]
ROWS = [{"text": text, "id": str(number)} for number, text in enumerate(TEXTS)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def contents(entries):
    assert all(isinstance(entry, Row) for entry in entries), entries
    return [entry.content for entry in entries]


def table(delimiter):
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, ["text", "id"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return stream.getvalue()


def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


WAYS = {
    "rows.jsonl": JSONL,
    "mark.jsonl": "\ufeff" + JSONL,
    "crlf.jsonl": JSONL.replace("\n", "\r\n"),
    "no_end.jsonl": JSONL.removesuffix("\n"),
    "rows.jsonl.gz": gzip.compress(JSONL.encode()),
    "members.jsonl.gz": gzip.compress(JSONL[:50].encode()) + gzip.compress(JSONL[50:].encode()),
    "mark.jsonl.gz": gzip.compress(("\ufeff" + JSONL).encode()),
    "rows.jsonl.zst": zstd(JSONL.encode()),
    "frames.jsonl.zst": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstd(JSONL[:50].encode()) + zstd(JSONL[50:].encode()),
    "rows.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "mark.json": "\ufeff" + json.dumps(ROWS, indent=1).replace("\n", "\r\n"),
    "objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "lines.json": JSONL,
    "rows.csv": table(","),
    "semicolons.csv": table(";"),
    "bars.csv": table("|"),
    "rows.tsv": table("\t"),
    "tabs.csv.gz": gzip.compress(table("\t").encode()),
    "mark.csv": "\ufeff" + table(","),
    "rows.parquet": parquet(),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_format_gives_identical_rows_and_says_nothing(write, read, capsys, name):
    path = write(name, WAYS[name])
    expected = {"lines.json": "data.path: F holds JSONL, and is read as that\n"}.get(name, "")
    assert contents(read(path)) == ROWS
    assert capsys.readouterr().out.replace(path, "F") == expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.txt", JSONL, "holds JSONL"),
        ("rows.csv", JSONL, "holds JSONL"),
        ("rows.parquet", JSONL, "holds JSONL"),
        ("rows", JSONL, "holds JSONL"),
        ("rows.jsonl", json.dumps(ROWS), "holds JSON"),
        ("rows.txt", json.dumps(ROWS, indent=1), "holds JSON"),
        ("rows.jsonl", json.dumps(ROWS[0], indent=1) + json.dumps(ROWS[1]) + json.dumps(ROWS[2]), "holds JSON"),
        ("rows.jsonl", table(";"), "holds CSV with semicolons"),
        ("rows.data", table(","), "holds CSV"),
        ("rows.jsonl", parquet(), "holds Parquet"),
        ("rows.gz", gzip.compress(JSONL.encode()), "holds JSONL, compressed by gzip"),
        ("rows.jsonl", gzip.compress(JSONL.encode()), "is compressed, and is read as JSONL, compressed by gzip"),
        ("rows.jsonl", zstd(JSONL.encode()), "is compressed, and is read as JSONL, compressed by zstd"),
        ("rows.csv", zstd(table(",").encode()), "is compressed, and is read as CSV, compressed by zstd"),
        ("rows.jsonl.gz", JSONL, "is not compressed, and is read as JSONL"),
    ],
)
def test_a_wrong_name_is_said_aloud(write, read, capsys, name, content, words):
    path = write(name, content)
    assert contents(read(path)) == ROWS
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"data.path: {path} {words}")


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("song.txt", "[Chorus]\nla\n\n{la}\n", ["[Chorus]\nla", "{la}"]),
        ("table.txt", "text,id\na,1\n", ["text,id\na,1"]),
        ("list.txt", '["a"]\n\n["b"]', ['["a"]', '["b"]']),
    ],
)
def test_text_under_its_name_stays_text(write, read, name, content, rows):
    assert contents(read(write(name, content))) == [{"text": row} for row in rows]


def test_the_format_can_be_forced(write, read, refusal):
    path = write("rows.jsonl", '{"text": "a"}\n\n{"text": "b"}')
    assert contents(read(path, format="txt")) == [{"text": '{"text": "a"}'}, {"text": '{"text": "b"}'}]
    assert contents(read(write("notes.md", "a\n"), format="txt", text_column="body")) == [{"body": "a"}]
    assert refusal(path, format="parquet").startswith("F:1: this isn't a Parquet file; set data.format to")
    assert refusal(write("a.txt", parquet()), format="txt").startswith("F:1: this is a Parquet file, not text")
    assert isinstance(read(write("b.json", JSONL), format="json")[0], Row)


def test_mapped_columns_tell_a_table_from_text(write, read, refusal):
    path = write("rows.data", "frage;antwort\na;b\n")
    assert "neither the ending .data nor the content tells the format" in refusal(path)
    assert contents(read(path, prompt_column="frage")) == [{"frage": "a", "antwort": "b"}]


CONVERT = "only UTF-8 is read; convert it with: iconv -f {} -t UTF-8 a.jsonl > utf8-a.jsonl"
WORDS = "rows need `text` or `content`, `instruction` and `output`, `prompt` and `completion`, or `messages`"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"F:1: the file is empty; {WORDS}"),
        ('{"text": "ä"}'.encode("utf-16"), "F:1: the file is UTF-16, " + CONVERT.format("UTF-16")),
        ('{"text": "ä"}'.encode("utf-32"), "F:1: the file is UTF-32, " + CONVERT.format("UTF-32")),
        (
            '{"text": "a"}'.encode("utf-16-le"),
            "F:1: the file looks like UTF-16 without a mark, " + CONVERT.format("UTF-16LE"),
        ),
        (
            '{"text": "a"}'.encode("utf-16-be"),
            "F:1: the file looks like UTF-16 without a mark, " + CONVERT.format("UTF-16BE"),
        ),
        (
            '{"text": "a"}\n{"text": "ä"}\n{"text": "ö"}'.encode("latin-1"),
            "F:2: the file looks like Latin-1 or Windows-1252, " + CONVERT.format("WINDOWS-1252"),
        ),
        (b"PK\x03\x04" + bytes(30), "F:1: the file is a zip archive, which can't be read; unpack it; save a spread"),
        (b"BZh91AY", "F:1: the file is compressed by bzip2, which can't be read; unpack it with: bunzip2 -k a.jsonl"),
        (
            b"\xfd7zXZ\x00\x00",
            "F:1: the file is compressed by xz, which can't be read; unpack it with: unxz -k a.jsonl",
        ),
        (b"%PDF-1.7\n", "F:1: the file is a PDF, which can't be read; take its text out, for example with: pdftotext "),
        (b"ARROW1\0\0", "F:1: the file is an Arrow file, which can't be read; store the table as Parquet"),
        (b"\x89PNG\r\n\x1a\n", "F:1: the file is an image (PNG), which can't be read; name a file of text"),
        (b"\xff\xd8\xff\xe0", "F:1: the file is an image (JPEG), which can't be read; name a file of text"),
        (b"GIF89a", "F:1: the file is an image (GIF), which can't be read; name a file of text"),
        (b"SQLite format 3\0", "F:1: the file is an SQLite data base, which can't be read; export the table as CSV"),
        (b"\x80\x04\x95\x01\0\0", "F:1: the file is a Python pickle, which can't be read; store"),
        (bytes(range(1, 256)) * 20, "F:1: the file is binary, of no kind that is known; name a file of text"),
        (b"x" * 257 + b"ustar", "F:1: the file is a tar archive, which can't be read; unpack it with: tar -xf a.jsonl"),
        (gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "F:1: the file is compressed twice; unpack it once"),
        (
            gzip.compress(parquet(), mtime=0),
            "F:1: this is Parquet inside gzip, which can't be read; unpack it with: gzip -dk ",
        ),
        (b"\x1f\x8b\x08\x00", "F:1: the file is cut short here, its gzip data have no end; get it whole"),
        (b"\x28\xb5\x2f\xfd\x00", "F:1: the file is cut short here, its zstd data have no end; get it whole"),
        (b"\x1f\x8b\xff\xff" + bytes(30), "F:1: the gzip data are damaged at about this line, nothing after it was"),
        (parquet()[:200], "F:1: the Parquet file is damaged or cut short (ArrowInvalid); get it anew"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_cure(write, refusal, content, message):
    assert refusal(write("a.jsonl", content)).startswith(message)


def test_the_command_that_converts_unpacks_first_and_quotes_the_name(write, refusal):
    found = refusal(write("it's.jsonl.gz", gzip.compress('{"text": "ä"}'.encode("utf-16"))))
    command = """gzip -dc 'it'"'"'s.jsonl.gz' | iconv -f UTF-16 -t UTF-8 > 'utf8-it'"'"'s.jsonl'"""
    assert found.endswith(f"convert it with: {command}")


def test_a_damaged_line_of_utf_8_is_one_bad_line(write, read):
    path = write("a.jsonl", '{"text": "ü"}\n'.encode() + b'{"text": "\xfc"}\n{"text": "\xe4"}\n{"text": "x"}\n')
    found = read(path)
    assert [entry.line for entry in found if isinstance(entry, NoRow)] == [2, 3]
    assert found[1].reason.startswith("isn't UTF-8; if the file is Latin-1 or Windows-1252, convert it with: iconv -f")
    assert "\xfc" not in found[1].reason


def test_what_parts_a_table_is_refused_where_it_may_be_two(write, refusal, read):
    assert refusal(write("a.csv", "a,b;c\n1,2;3\n")).startswith("F:1: it can't be told what parts the columns")
    assert contents(read(write("b.csv", "a,b;text\n1,2;3\n"))) == [{"a,b": "1,2", "text": "3"}]
    assert contents(read(write("c.csv", "body\nx\n"))) == [{"body": "x"}]
