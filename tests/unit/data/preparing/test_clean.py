"""The kept rows as a file: all of them, in order, as they are read again."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from llmtune.config.data import FilesConfig, MixtureConfig, SourceConfig
from llmtune.data.preparing import clean
from llmtune.data.preparing.clean import check_clean_target, write_clean
from llmtune.data.preparing.prepared import prepare_data
from llmtune.errors import DataError

pytestmark = pytest.mark.fast
ADDRESS = "jane.doe" + "@" + "example.org"


@pytest.fixture
def config(write, tmp_path):
    texts = [f" line {n} \u2028 with “quotes”\r\nand more" for n in range(60)]
    rows = [json.dumps({"text": text}) for text in [*texts, texts[3], "", f"write to {ADDRESS}"]]
    return FilesConfig(
        path=write("a.jsonl", "\n".join(rows)),
        eval_path=write("e.txt", "a test text"),
        write_clean=str(tmp_path / "out" / "clean.jsonl"),
        personal_data="mask",
        validation_fraction=0.2,
        num_workers=0,
    )


def test_the_kept_rows_are_written_in_order(config, plain_tokenizer, tmp_path):
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    path, num_rows = write_clean(config, data)
    rows = [json.loads(line)["text"] for line in Path(path).read_bytes().decode().split("\n")[:-1]]
    given = [json.loads(line)["text"] for line in Path(config.path).read_text().split("\n")]
    assert rows == [*given[:60], "write to [EMAIL]"]
    assert num_rows == 61
    again = FilesConfig(path=str(path), eval_path=config.eval_path, validation_fraction=0.2, num_workers=0)
    assert prepare_data(again, plain_tokenizer, "t", tmp_path).digest == data.digest


def test_what_was_skipped_is_not_written(config, plain_tokenizer, tmp_path):
    with Path(config.path).open("a") as file:
        file.write('\n{"text": 3}\n{"text": "the last"}')
    skipping = FilesConfig(**{**vars(config), "on_bad_record": "skip", "max_words": 4, "validation_fraction": 0.0})
    data = prepare_data(skipping, plain_tokenizer, "t", tmp_path)
    path, num_rows = write_clean(skipping, data)
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["write to [EMAIL]", "the last"]
    assert num_rows == 2


def test_another_file_is_never_overwritten(config, plain_tokenizer, tmp_path):
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    path, _ = write_clean(config, data)
    content = path.read_bytes()
    write_clean(config, data)  # the same again is fine: a sweep's jobs all write it
    assert path.read_bytes() == content
    path.write_text("mine")
    with pytest.raises(DataError, match=r"data\.write_clean=.*clean\.jsonl: another file is there; remove it"):
        write_clean(config, data)
    assert path.read_text() == "mine"
    assert [entry.name for entry in path.parent.iterdir()] == ["clean.jsonl"]


def test_rows_that_are_left_out_later_are_not_written(config, plain_tokenizer, tmp_path):
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    line = int(data.train.source(3).rpartition(":")[2])
    path, num_rows = write_clean(config, data.without(np.arange(len(data.train)) == 3, "odd"))
    texts = [json.loads(row)["text"] for row in path.read_text().split("\n")[:-1]]
    assert num_rows == len(texts) == 60
    assert json.loads(Path(config.path).read_text().split("\n")[line - 1])["text"] not in texts


def test_what_was_written_is_not_read_again(config, plain_tokenizer, tmp_path, monkeypatch):
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    path, num_rows = write_clean(config, data)
    read = []
    lines = clean._lines
    monkeypatch.setattr(clean, "_lines", lambda *given: read.append(1) or lines(*given))
    assert write_clean(config, data) == (path, num_rows) and read == []
    os.utime(path)  # touched: looked at once more
    assert [write_clean(config, data) for _ in range(2)] == [(path, num_rows)] * 2 and read == [1]
    (data.folder / "clean.json").write_text("[]")
    assert [write_clean(config, data) for _ in range(2)] == [(path, num_rows)] * 2 and read == [1, 1]
    fewer = data.without(np.arange(len(data.train)) == 3, "odd")
    with pytest.raises(DataError, match="another file is there"):  # other rows are kept now
        write_clean(config, fewer)
    path.unlink()
    assert write_clean(config, data) == (path, num_rows) and path.exists()


@pytest.mark.parametrize(
    ("path", "target", "is_read"),
    [
        ("in", "in/clean.jsonl", True),
        ("in", "in/deep/clean.jsonl", True),
        ("in", "out/clean.jsonl", False),
        ("in", "in.jsonl", False),
        ("in/*.jsonl", "in/clean.jsonl", True),
        ("in/*.jsonl", "in/clean.txt", False),
        ("in/*.jsonl", "in/deep/clean.jsonl", False),
        ("in/**/*.jsonl", "in/clean.jsonl", True),
        ("in/**/*.jsonl", "in/deep/er/clean.jsonl", True),
        ("i?/[a-d]*.jsonl", "in/clean.jsonl", True),
        ("i?/[d-z]*.jsonl", "in/clean.jsonl", False),
        ("in/a.jsonl", "in/a.jsonl", True),
        ("in/a.jsonl", "link.jsonl", True),
        ("in/a.jsonl", "in/../in/a.jsonl", True),
        ("in/*.jsonl", "link.jsonl", True),
        ("in/a.jsonl", "in/b.jsonl", False),
        ("linked", "in/clean.jsonl", True),
    ],
)
@pytest.mark.parametrize("key", ["data.path", "data.eval_path", "data.sources[1].path"])
def test_a_file_that_would_be_read_is_refused(tmp_path, monkeypatch, path, target, is_read, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "a"}')
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in" / "a.jsonl")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    sources = (SourceConfig(path="other.jsonl"), SourceConfig(path=path))
    config = {
        "data.path": FilesConfig(path=path, write_clean=target),
        "data.eval_path": FilesConfig(path="other.jsonl", eval_path=path, write_clean=target),
        "data.sources[1].path": MixtureConfig(sources=sources, write_clean=target),
    }[key]
    if not is_read:
        return check_clean_target(config)
    with pytest.raises(DataError) as caught:
        check_clean_target(config)
    assert str(caught.value).startswith(f"data.write_clean={target}: {key}={path} would read this file as examples; ")
