"""The kept rows as a file: all of them, in order, as they are read again."""

import json
from pathlib import Path

import pytest

from llmtune.config.data import FilesConfig
from llmtune.data.preparing.clean import write_clean
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
