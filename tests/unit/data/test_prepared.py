"""Files to tables on disk, with an account of every row; the cache."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmtune.config.data import EmbeddedConfig, FilesConfig
from llmtune.data import prepared
from llmtune.data.prepared import open_prepared, prepare_data, preview
from llmtune.data.records import Record, RecordSet
from llmtune.data.tokenize import IGNORED
from llmtune.errors import DataError

pytestmark = pytest.mark.fast
LONG = "p" * 90


@pytest.fixture
def pairs_file(write):
    rows = [{"prompt": f"number {n} is", "completion": f" {'x' * (n % 40)}{n}"} for n in range(80)]
    lines = [json.dumps(row) for row in rows]
    return write("a.jsonl", "\n".join([*lines, "", lines[0], json.dumps({"prompt": LONG, "completion": " x282"})]))


def test_every_row_is_kept_or_dropped_for_a_reason(pairs_file, plain_tokenizer, tmp_path):
    data = prepare_data(FilesConfig(path=pairs_file, max_seq_len=40), plain_tokenizer, "t", tmp_path)
    rows = data.report["rows"]["train"]
    assert rows["in"] == 83
    assert rows["dropped"] == {"blank line": 1, "duplicate": 1, "no supervised token within max_seq_len": 1}
    assert sum(rows["kept"].values()) == 80
    assert rows["kept"] == {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    summaries = data.report["splits"].values()
    truncated = sum(summary["num_truncated"] for summary in summaries)
    assert truncated > 0
    dropping = FilesConfig(path=pairs_file, max_seq_len=40, overlong="drop")
    rows = prepare_data(dropping, plain_tokenizer, "t", tmp_path).report["rows"]["train"]
    assert rows["dropped"]["longer than max_seq_len"] == truncated + 1


def test_a_table_holds_what_was_tokenised(pairs_file, plain_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "_BATCH", 7)  # several chunks
    table = prepare_data(FilesConfig(path=pairs_file), plain_tokenizer, "t", tmp_path).train
    ids = set()
    for index in range(len(table)):
        line = int(table.source(index).rpartition(":")[2]) - 1
        prompt, completion = f"number {line} is", f" {'x' * (line % 40)}{line}"
        if line == 82:
            prompt, completion = LONG, " x282"
        text = plain_tokenizer.decode(table.input_ids(index).tolist())
        assert text == f"{prompt}{completion}<|endoftext|>"
        labels = table.labels(index)
        assert plain_tokenizer.decode(labels[labels != IGNORED].tolist()) == f"{completion}<|endoftext|>"
        assert table.num_tokens[index] == len(table.input_ids(index))
        assert table.num_supervised_tokens[index] == np.count_nonzero(labels[1:] != IGNORED)
        assert table.num_supervised_bytes[index] == len(completion)
        ids.add(table.example_id(index))
    assert len(ids) == len(table) > 50
    assert table.num_tokens.dtype == table.num_supervised_tokens.dtype == np.int64
    with pytest.raises(IndexError):
        table.input_ids(len(table))
    with pytest.raises(ValueError, match="read-only"):
        table.input_ids(0)[0] = 1


def test_a_preview_tells_what_is_supervised(pairs_file, plain_tokenizer, tmp_path):
    data = prepare_data(FilesConfig(path=pairs_file), plain_tokenizer, "t", tmp_path)
    shown = preview(data.train, plain_tokenizer, 2)
    assert len(shown) == 2
    (given, first), (learnt, second) = shown[0].parts
    assert (first, second) == (False, True)
    assert given.startswith("number ")
    assert learnt.endswith("<|endoftext|>")


def test_prepared_data_is_found_again_and_each_change_builds_it_anew(
    pairs_file, plain_tokenizer, tmp_path, monkeypatch
):
    config = FilesConfig(path=pairs_file)
    first = prepare_data(config, plain_tokenizer, "t", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "read_records", lambda config: pytest.fail("read again"))
        assert prepare_data(config, plain_tokenizer, "t", tmp_path).folder == first.folder
    folders = {first.folder}
    for changed, digest in ((FilesConfig(path=pairs_file, split_seed=1), "t"), (config, "u")):
        folders.add(prepare_data(changed, plain_tokenizer, digest, tmp_path).folder)
    with monkeypatch.context() as patch:
        patch.setattr(plain_tokenizer, "chat_template", "{{ messages }}")
        folders.add(prepare_data(config, plain_tokenizer, "t", tmp_path).folder)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "CODE_VERSION", -1)
        folders.add(prepare_data(config, plain_tokenizer, "t", tmp_path).folder)
    with Path(pairs_file).open("a") as file:
        file.write('\n{"prompt": "new", "completion": "row"}')
    folders.add(prepare_data(config, plain_tokenizer, "t", tmp_path).folder)
    assert len(folders) == 6
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "report.json",
        "test.arrow",
        "train.arrow",
        "validation.arrow",
    ]
    assert not [path for path in first.folder.parent.iterdir() if path.name.startswith(".")]


def test_the_digest_follows_tokens_and_splits_alone(pairs_file, plain_tokenizer, tmp_path):
    config = FilesConfig(path=pairs_file)
    first = prepare_data(config, plain_tokenizer, "t", tmp_path / "a")
    assert prepare_data(config, plain_tokenizer, "u", tmp_path / "b").digest == first.digest
    other = FilesConfig(path=pairs_file, split_seed=1)
    assert prepare_data(other, plain_tokenizer, "t", tmp_path / "a").digest != first.digest


def test_a_damaged_file_is_noticed_and_built_again(pairs_file, plain_tokenizer, tmp_path, capsys):
    config = FilesConfig(path=pairs_file)
    first = prepare_data(config, plain_tokenizer, "t", tmp_path)
    damaged = first.folder / "train.arrow"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.unlink()  # the first table still reads the old file
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.arrow has another sha256"):
        open_prepared(first.folder, config)
    assert prepare_data(config, plain_tokenizer, "t", tmp_path).digest == first.digest
    assert "damaged" in capsys.readouterr().out
    open_prepared(first.folder, config)


def test_a_failed_build_leaves_nothing(pairs_file, plain_tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"no training example is left after .* dropped: no supervised token within"):
        prepare_data(FilesConfig(path=pairs_file, max_seq_len=2), plain_tokenizer, "t", tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "prepared").iterdir()] in ([], [".lock"])


def test_an_eval_file_has_its_own_account(pairs_file, write, plain_tokenizer, tmp_path):
    evaluation = write("e.txt", "one text\n\nanother text\n\none text\n")
    config = FilesConfig(path=pairs_file, eval_path=evaluation, validation_fraction=0.0)
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    assert data.report["rows"]["eval"] == {"in": 3, "kept": {"test": 2}, "dropped": {"duplicate": 1}}
    assert data.report["rows"]["train"]["kept"] == {"train": 81, "validation": 0}
    assert len(data.validation) == 0
    assert data.report["eval_origin"]["path"] == evaluation
    write("e.txt", "one text\n\nanother\n")
    assert prepare_data(config, plain_tokenizer, "t", tmp_path).folder != data.folder


def test_tables_for_training_hold_nothing_of_the_test_file(pairs_file, write, plain_tokenizer, tmp_path):
    lines = Path(pairs_file).read_text().splitlines()
    evaluation = write("e.jsonl", "\n".join(lines[:40]))
    config = FilesConfig(path=pairs_file, eval_path=evaluation, num_test_examples=5, validation_fraction=0.2)
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    ids = {name: {data.split(name).example_id(row) for row in range(len(data.split(name)))} for name in prepared.SPLITS}
    assert len(ids["test"]) == 40
    assert ids["train"]
    assert ids["validation"]
    assert not ids["test"] & (ids["train"] | ids["validation"])
    rows = data.report["rows"]["train"]
    assert rows["dropped"]["also in the test file"] == data.report["num_test_in_training"] == 40
    assert rows["in"] == sum(rows["kept"].values()) + sum(rows["dropped"].values())


def test_the_whole_training_file_can_be_the_test_file(pairs_file, plain_tokenizer, tmp_path):
    data = prepare_data(FilesConfig(path=pairs_file, eval_path=pairs_file), plain_tokenizer, "t", tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (0, 0, 81)


def test_the_same_content_elsewhere_is_found_and_named_as_it_is_now(
    pairs_file, write, plain_tokenizer, tmp_path, monkeypatch
):
    evaluation = write("e.txt", "one text\n\nanother text\n")
    cache = tmp_path / "cache"
    first = prepare_data(FilesConfig(path=pairs_file, eval_path=evaluation), plain_tokenizer, "t", cache)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    for old, new in (("a.jsonl", "b/c.jsonl"), ("e.txt", "b/f.txt")):
        Path(old).rename(new)
    config = FilesConfig(path="b/c.jsonl", format="jsonl", eval_path="b/f.txt")
    second = prepare_data(config, plain_tokenizer, "t", cache)
    assert second.folder == first.folder
    assert second.report["origin"]["path"] == str(tmp_path / "b" / "c.jsonl")
    assert second.report["eval_origin"]["path"] == str(tmp_path / "b" / "f.txt")
    assert second.train.source(0).startswith("b/c.jsonl:")
    assert second.validation.source(0).startswith("b/c.jsonl:")
    assert second.test.source(0).startswith("b/f.txt:")
    assert first.train.source(0).startswith(f"{pairs_file}:")


def test_the_same_bytes_in_another_format_are_other_data(write, plain_tokenizer, tmp_path):
    content = "\n\n".join(json.dumps({"text": f"text {n}"}) for n in range(30))
    one, two = (FilesConfig(path=write(name, content)) for name in ("a.jsonl", "a.txt"))
    digests = {prepare_data(config, plain_tokenizer, "t", tmp_path).digest for config in (one, two)}
    assert len(digests) == 2


def test_examples_of_packages_keep_their_own_names_beside_a_test_file(write, plain_tokenizer, tmp_path, monkeypatch):
    records = [Record(f"pkg/m{n}.py", 3, text=f"text {n}") for n in range(30)]
    origin = {"rows": 30, "sha256": "x"}
    monkeypatch.setattr(prepared, "read_records", lambda config: RecordSet(records, origin))
    monkeypatch.setattr(prepared, "source_digest", lambda config: None)
    config = EmbeddedConfig(eval_path=write("e.txt", "one text"))
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    assert data.train.source(0).startswith("pkg/m")
    assert data.test.source(0) == f"{config.eval_path}:1"
    assert data.report["origin"] == origin
    write("e.txt", "another text")  # also where the source has no cheap digest
    assert prepare_data(config, plain_tokenizer, "t", tmp_path).digest != data.digest
