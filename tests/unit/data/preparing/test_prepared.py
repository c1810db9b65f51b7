"""Files to tables on disk, with an account of every row; the cache."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from llmtune.config.data import FilesConfig, MixtureConfig, SourceConfig
from llmtune.data.deciding.decisions import SPLITS
from llmtune.data.encoding.example import IGNORED
from llmtune.data.preparing import alone, build, prepared, verified
from llmtune.data.preparing.prepared import open_prepared, prepare_data
from llmtune.errors import DataError

pytestmark = pytest.mark.fast
LONG = "p" * 90
OPTIONS = {"find_near_duplicates": False, "validation_fraction": 0.1, "test_fraction": 0.2}


@pytest.fixture
def pairs_file(write):
    rows = [{"prompt": f"number {n} is", "completion": f" {'x' * (n % 40)}{n}"} for n in range(80)]
    lines = [json.dumps(row) for row in rows]
    return write("a.jsonl", "\n".join([*lines, "", lines[0], json.dumps({"prompt": LONG, "completion": " x282"})]))


def balanced(report):
    """Whether every row is kept or dropped for a reason, in each source and in all."""
    parts = [(source["rows"], source["kept"], source["dropped"]) for source in report["sources"]]
    parts.append((report["rows"]["in"], report["rows"]["kept"], report["rows"]["dropped"]))
    return all(rows == sum(kept.values()) + sum(dropped.values()) for rows, kept, dropped in parts)


def test_every_row_is_kept_or_dropped_for_a_reason(pairs_file, plain_tokenizer, tmp_path):
    config = FilesConfig(path=pairs_file, max_seq_len=40, **OPTIONS)
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    rows = data.report["rows"]
    assert rows["in"] == 83
    assert rows["dropped"] == {"blank line": 1, "duplicate": 1, "no supervised token within max_seq_len": 1}
    assert sum(rows["kept"].values()) == 80
    assert rows["kept"] == {name: len(data.split(name)) for name in SPLITS}
    assert balanced(data.report)
    truncated = sum(split["num_truncated"] for split in data.report["splits"].values())
    assert truncated > 0
    dropping = FilesConfig(path=pairs_file, max_seq_len=40, overlong="drop", **OPTIONS)
    rows = prepare_data(dropping, plain_tokenizer, "t", tmp_path).report["rows"]
    assert rows["dropped"]["longer than max_seq_len"] == truncated + 1


def test_windows_are_examples_of_one_row(pairs_file, plain_tokenizer, tmp_path):
    config = FilesConfig(path=pairs_file, max_seq_len=12, overlong="split", **OPTIONS)
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    whole = prepare_data(FilesConfig(path=pairs_file, **OPTIONS), plain_tokenizer, "t", tmp_path)
    for name in SPLITS:
        assert len(data.split(name)) > len(whole.split(name)) == data.report["splits"][name]["num_rows"]
        assert data.split(name).num_supervised_tokens.sum() == whole.split(name).num_supervised_tokens.sum()
        ids = [data.split(name).example_id(row) for row in range(len(data.split(name)))]
        assert len(set(ids)) == len(ids)
        sources = [data.split(name).source(row) for row in range(len(ids))]
        assert list(dict.fromkeys(sources)) == [whole.split(name).source(row) for row in range(len(whole.split(name)))]
    assert balanced(data.report)


def test_a_table_holds_what_was_tokenised(pairs_file, plain_tokenizer, tmp_path):
    table = prepare_data(FilesConfig(path=pairs_file, **OPTIONS), plain_tokenizer, "t", tmp_path).train
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
    assert len(ids) == len(table) > 40
    assert table.num_tokens.dtype == table.num_supervised_tokens.dtype == np.int64
    with pytest.raises(IndexError):
        table.input_ids(len(table))
    with pytest.raises(ValueError, match="read-only"):
        table.input_ids(0)[0] = 1


def test_processes_change_nothing(pairs_file, plain_tokenizer, tmp_path):
    found = []
    for number, num_workers in enumerate((0, 1, 3)):
        config = FilesConfig(path=pairs_file, num_workers=num_workers, validation_fraction=0.1, test_fraction=0.2)
        data = prepare_data(config, plain_tokenizer, "t", tmp_path / str(number))
        files = {name: digest for name, digest in data.report["files"].items() if name.endswith(".arrow")}
        found.append((data.digest, data.folder.name, files, data.report["rows"]))
    assert found[0] == found[1] == found[2]


def test_the_order_of_a_file_changes_nothing_that_is_trained(pairs_file, write, plain_tokenizer, tmp_path):
    lines = Path(pairs_file).read_text().splitlines()
    turned = write("b.jsonl", "\n".join(reversed(lines)))
    one, two = (
        prepare_data(FilesConfig(path=path, **OPTIONS), plain_tokenizer, "t", tmp_path) for path in (pairs_file, turned)
    )
    assert one.folder != two.folder
    assert one.digest == two.digest
    assert (one.train.input_ids(3) == two.train.input_ids(3)).all()


def test_prepared_data_is_found_again_and_each_change_builds_it_anew(
    pairs_file, plain_tokenizer, tmp_path, monkeypatch
):
    config = FilesConfig(path=pairs_file, **OPTIONS)
    first = prepare_data(config, plain_tokenizer, "t", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "build", lambda *arguments: pytest.fail("built again"))
        assert prepare_data(config, plain_tokenizer, "t", tmp_path).folder == first.folder
        same = FilesConfig(path=pairs_file, num_workers=3, write_clean="x.jsonl", loss_outliers="drop", **OPTIONS)
        assert prepare_data(same, plain_tokenizer, "t", tmp_path).folder == first.folder
    folders = {first.folder}
    changes = ({"split_seed": 1}, {"duplicates": "near", "find_near_duplicates": True}, {"overlong": "drop"})
    for change in changes:
        changed = FilesConfig(path=pairs_file, **{**OPTIONS, **change})
        folders.add(prepare_data(changed, plain_tokenizer, "t", tmp_path).folder)
    folders.add(prepare_data(config, plain_tokenizer, "u", tmp_path).folder)
    with monkeypatch.context() as patch:
        patch.setattr(plain_tokenizer, "chat_template", "{{ messages }}")
        folders.add(prepare_data(config, plain_tokenizer, "t", tmp_path).folder)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_code_digest", lambda: "another version")
        folders.add(prepare_data(config, plain_tokenizer, "t", tmp_path).folder)
    with Path(pairs_file).open("a") as file:
        file.write('\n{"prompt": "new", "completion": "row"}')
    folders.add(prepare_data(config, plain_tokenizer, "t", tmp_path).folder)
    assert len(folders) == 8
    names = {path.name for path in first.folder.iterdir()}
    tables = {f"{name}{ending}" for name in SPLITS for ending in (".arrow", ".order.npy")}
    assert names == {*tables, "report.json", "kept.npy", "train.rows.npy", "test.clusters.npy", "seen.json"}
    assert not [path for path in first.folder.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["train.arrow", "test.order.npy", "report.json"])
@pytest.mark.parametrize("how", ["flipped", "shortened", "gone"])
def test_a_damaged_file_is_noticed_and_built_again(name, how, pairs_file, plain_tokenizer, tmp_path, capsys):
    config = FilesConfig(path=pairs_file, **OPTIONS)
    first = prepare_data(config, plain_tokenizer, "t", tmp_path)
    damaged = first.folder / name
    content = bytearray(damaged.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    damaged.unlink()  # the first table still reads the old file
    if how != "gone":
        damaged.write_bytes(content if how == "flipped" else content[: len(content) // 2])
    with pytest.raises((ValueError, OSError, KeyError)):
        open_prepared(first.folder)
    assert prepare_data(config, plain_tokenizer, "t", tmp_path).digest == first.digest
    assert "damaged" in capsys.readouterr().out
    open_prepared(first.folder)


def test_a_file_that_was_only_touched_is_read_once_more_and_taken(pairs_file, plain_tokenizer, tmp_path, monkeypatch):
    data = prepare_data(FilesConfig(path=pairs_file, **OPTIONS), plain_tokenizer, "t", tmp_path)
    read = []
    sha256_of = verified.sha256_of
    monkeypatch.setattr(verified, "sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    open_prepared(data.folder)
    assert read == []
    os.utime(data.folder / "train.arrow")
    assert open_prepared(data.folder).digest == data.digest
    assert "train.arrow" in read
    read.clear()
    open_prepared(data.folder)
    assert read == []


def test_what_a_killed_build_left_is_removed_and_never_used(pairs_file, plain_tokenizer, tmp_path):
    config = FilesConfig(path=pairs_file, **OPTIONS)
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from transformers import AutoTokenizer\n"
        "from llmtune.config.data import FilesConfig\n"
        "from llmtune.data.preparing import build, prepared\n"
        "build.write_report = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        f"config = FilesConfig(path={pairs_file!r}, **{OPTIONS!r})\n"
        "prepared.prepare_data(config, tokenizer, 't', Path(sys.argv[2]))\n"
    )
    tokenizer = plain_tokenizer.name_or_path
    done = subprocess.run([sys.executable, "-c", script, tokenizer, str(tmp_path)], timeout=120, check=False)
    assert done.returncode == -9
    left = [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]
    assert len(left) == 1
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    assert [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()] == [data.folder]


def test_jobs_that_start_together_prepare_once(pairs_file, plain_tokenizer, tmp_path, monkeypatch):
    built = []
    original = build.build

    def slow_build(*arguments):
        built.append(threading.get_ident())
        time.sleep(0.2)
        original(*arguments)

    monkeypatch.setattr(prepared, "build", slow_build)
    config, found = FilesConfig(path=pairs_file, **OPTIONS), []
    jobs = [
        threading.Thread(target=lambda: found.append(prepare_data(config, plain_tokenizer, "t", tmp_path).digest))
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(built) == 1
    assert len(set(found)) == 1
    assert len(found) == 4


def test_a_failed_build_leaves_nothing(pairs_file, plain_tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"no training example is left after .* dropped: no supervised token within"):
        prepare_data(FilesConfig(path=pairs_file, max_seq_len=2, **OPTIONS), plain_tokenizer, "t", tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "prepared").iterdir()] in ([], [".lock"])


def test_an_eval_file_has_its_own_account(pairs_file, write, plain_tokenizer, tmp_path):
    evaluation = write("e.txt", "one text\n\nanother text\n\none text\n")
    config = FilesConfig(path=pairs_file, eval_path=evaluation, validation_fraction=0.0)
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    train, test = data.report["sources"]
    assert (train["role"], test["role"]) == ("train", "eval")
    assert (test["rows"], test["kept"]["test"], test["dropped"]) == (3, 2, {"duplicate": 1})
    assert train["kept"] == {"train": 81, "validation": 0, "test": 0}
    assert len(data.validation) == 0
    assert balanced(data.report)
    write("e.txt", "one text\n\nanother\n")
    assert prepare_data(config, plain_tokenizer, "t", tmp_path).folder != data.folder


def test_tables_for_training_hold_nothing_of_the_test_file(pairs_file, write, plain_tokenizer, tmp_path):
    lines = Path(pairs_file).read_text().splitlines()
    evaluation = write("e.jsonl", "\n".join([*lines[:40], '{"prompt": "NUMBER 41  is", "completion": "  x41!"}']))
    config = FilesConfig(path=pairs_file, eval_path=evaluation, validation_fraction=0.2, num_test_examples=5)
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    ids = {name: {data.split(name).example_id(row) for row in range(len(data.split(name)))} for name in SPLITS}
    assert len(ids["test"]) == 41
    assert ids["train"]
    assert ids["validation"]
    assert not ids["test"] & (ids["train"] | ids["validation"])
    train = data.report["sources"][0]
    assert train["dropped"]["also in the test file"] == data.report["overlap"]["exact"] == 40
    assert balanced(data.report)


def test_the_whole_training_file_can_be_the_test_file(pairs_file, plain_tokenizer, tmp_path):
    config = FilesConfig(path=pairs_file, eval_path=pairs_file, find_near_duplicates=False)
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (0, 0, 81)


def test_the_same_bytes_in_another_format_are_other_data(write, plain_tokenizer, tmp_path):
    content = "\n\n".join(json.dumps({"text": f"text {n}"}) for n in range(80))
    configs = [FilesConfig(path=write("a", content), format=name, **OPTIONS) for name in ("jsonl", "txt")]
    assert len({prepare_data(config, plain_tokenizer, "t", tmp_path).digest for config in configs}) == 2


def test_bad_records_are_refused_together_or_skipped_and_counted(pairs_file, plain_tokenizer, tmp_path):
    with Path(pairs_file).open("a") as file:
        file.write('\n{"prompt": 3, "completion": "x"}\n{"text": \n' + '{"prompt": "p"}\n' * 30)
    with pytest.raises(DataError) as caught:
        prepare_data(FilesConfig(path=pairs_file, **OPTIONS), plain_tokenizer, "t", tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{pairs_file}:84: `prompt` must be text")
    assert lines[1].startswith(f"{pairs_file}:85: not valid JSON")
    assert lines[2].startswith(f"{pairs_file}:86: `prompt` stands without `completion`")
    assert lines[3:] == [
        "... and 29 more like it (lines 87 to 115)",
        "mend them, or set data.on_bad_record=skip to leave them out",
    ]
    skipping = FilesConfig(path=pairs_file, on_bad_record="skip", **OPTIONS)
    report = prepare_data(skipping, plain_tokenizer, "t", tmp_path).report
    assert report["bad_records"]["count"] == 32
    assert sum(report["bad_records"]["by_reason"].values()) == 32
    assert report["rows"]["in"] == 115
    assert balanced(report)


def test_a_mixture_repeats_and_thins_training_examples_alone(write, plain_tokenizer, tmp_path):
    one = write("one.jsonl", "".join(json.dumps({"text": f"one {n}"}) + "\n" for n in range(100)))
    two = write("two.jsonl", "".join(json.dumps({"text": f"two {n}"}) + "\n" for n in range(100)))
    sources = (SourceConfig(path=one, weight=2.5, licence="MIT"), SourceConfig(path=two, weight=0.5))
    data = prepare_data(MixtureConfig(sources=sources, **OPTIONS), plain_tokenizer, "t", tmp_path)
    seen = [data.train.source(row).rpartition(":")[0] for row in range(len(data.train))]
    kept = [source["kept"]["train"] for source in data.report["sources"]]
    assert 2.3 * kept[0] < seen.count(one) < 2.7 * kept[0]
    assert seen.count(two) == kept[1] < 50
    assert data.report["splits"]["train"]["num_repeated"] == seen.count(one) - kept[0]
    for name in ("validation", "test"):
        ids = [data.split(name).example_id(row) for row in range(len(data.split(name)))]
        assert len(set(ids)) == len(ids) > 0
    assert data.report["sources"][0]["licence"] == "MIT"
    assert balanced(data.report)


def test_personal_data_is_masked_before_anything_is_written(write, plain_tokenizer, tmp_path):
    address = "jane.doe" + "@" + "example.org"
    lines = [json.dumps({"text": f"line {n}" + (f" write to {address}" if n % 10 == 0 else "")}) for n in range(80)]
    path = write("a.jsonl", "\n".join(lines))
    warned = prepare_data(FilesConfig(path=path, **OPTIONS), plain_tokenizer, "t", tmp_path / "w")
    masked = prepare_data(FilesConfig(path=path, personal_data="mask", **OPTIONS), plain_tokenizer, "t", tmp_path / "m")
    for data, is_there in ((warned, True), (masked, False)):
        texts = [
            plain_tokenizer.decode(data.split(name).input_ids(row))
            for name in SPLITS
            for row in range(len(data.split(name)))
        ]
        assert any(address in text for text in texts) == is_there
        kinds = data.report["personal_data"]["kinds"]
        assert kinds["email"]["count"] == kinds["email"]["rows"] == 8
        assert kinds["email"]["listed"][0] == f"{path}:1"
    assert address not in json.dumps(masked.report) + json.dumps(warned.report)
    dropped = prepare_data(
        FilesConfig(path=path, personal_data="drop", **OPTIONS), plain_tokenizer, "t", tmp_path / "d"
    )
    assert dropped.report["rows"]["dropped"] == {"personal data": 8}
    assert balanced(dropped.report)


@pytest.mark.parametrize("content", ["[]", "null", "7", '"text"', "{}", "[" * 100_000, '{"own_sha256": 3}'])
def test_a_report_that_is_none_is_noticed_and_built_again(content, pairs_file, plain_tokenizer, tmp_path, capsys):
    config = FilesConfig(path=pairs_file, **OPTIONS)
    first = prepare_data(config, plain_tokenizer, "t", tmp_path)
    (first.folder / "report.json").write_text(content)
    assert prepare_data(config, plain_tokenizer, "t", tmp_path).report == first.report
    assert "is damaged (report.json isn't what was written)" in capsys.readouterr().out


def test_what_is_left_out_later_is_counted_by_row_and_source(write, plain_tokenizer, tmp_path):
    """One source's rows are taken three times and in two windows each; of the other one row goes whole."""
    one = write("one.jsonl", "".join(json.dumps({"text": f"one {n:03} " + "x" * 20}) + "\n" for n in range(6)))
    two = write("two.jsonl", "".join(json.dumps({"text": f"two {n}"}) + "\n" for n in range(6)))
    sources = (SourceConfig(path=one, weight=3), SourceConfig(path=two))
    config = MixtureConfig(
        sources=sources,
        max_seq_len=20,
        overlong="split",
        eval_path=write("e.txt", "a test text"),
        validation_fraction=0.0,
        find_near_duplicates=False,
        outliers="ignore",
    )
    data = prepare_data(config, plain_tokenizer, "t", tmp_path)
    assert len(data.train) == 6 * 3 * 2 + 6
    places = [data.train.source(index) for index in range(len(data.train))]
    left_out = np.array([place in (f"{one}:2", f"{two}:5") for place in places])
    left_out |= np.array([place == f"{one}:4" and len(data.train.input_ids(n)) == 20 for n, place in enumerate(places)])
    found = data.without(left_out, "odd")
    assert [source["dropped"] for source in found.report["sources"]] == [{"odd": 1}, {"odd": 1}, {}]
    assert [source["kept"]["train"] for source in found.report["sources"]] == [5, 5, 0]
    assert found.report["rows"] == {"in": 13, "kept": {"train": 10, "validation": 0, "test": 1}, "dropped": {"odd": 2}}
    assert balanced(found.report)
    lengths = [len(found.train.input_ids(index)) for index in range(len(found.train))]
    supervised = sum(np.count_nonzero(found.train.labels(n)[1:] != IGNORED) for n in range(len(found.train)))
    split = found.report["splits"]["train"]
    assert len(lengths) == 36 + 6 - (6 + 1 + 3)
    assert (split["num_rows"], split["num_examples"], split["num_tokens"]) == (10, len(lengths), sum(lengths))
    assert (split["num_supervised_tokens"], split["supervised_share"]) == (supervised, supervised / sum(lengths))
    assert (split["mean_tokens"], split["longest_tokens"]) == (sum(lengths) / len(lengths), max(lengths))
    assert split["num_repeated"] == 2 * (4 * 2 + 1)
    assert found.left_out.tolist() == [1, 10]
    assert found.report["splits"]["test"] == data.report["splits"]["test"] and data.report["rows"]["dropped"] == {}
    again = found.without(np.arange(len(found.train)) == 0, "more")
    assert balanced(again.report) and set(again.left_out) >= {1, 10}


def key_of(config, tokenizer):
    return prepared._cache_key(config, prepared.describe_tokenizer(tokenizer), "t", [[], []])


def test_whatever_decides_what_is_written_is_in_the_key(pairs_file, plain_tokenizer, tmp_path, monkeypatch):
    config = FilesConfig(path=pairs_file, **OPTIONS)
    keys = {prepare_data(config, plain_tokenizer, "t", tmp_path).folder.name}
    version = prepared.importlib.metadata.version
    for name in ("fastokens", "jinja2", "pyarrow", "numpy", "datasets"):
        with monkeypatch.context() as patch:
            newer = {name: "99"}
            patch.setattr(
                prepared.importlib.metadata, "version", lambda asked, newer=newer: newer.get(asked) or version(asked)
            )
            prepared._versions.cache_clear()
            keys.add(key_of(config, plain_tokenizer))
    prepared._versions.cache_clear()
    assert len(keys) == 6
    before = key_of(config, plain_tokenizer)
    with monkeypatch.context() as patch:
        patch.setenv("LLMTUNE_FAST_TOKENIZER", "0")
        assert key_of(config, plain_tokenizer) != before
        patch.setenv("LLMTUNE_FAST_TOKENIZER", "1")
        assert key_of(config, plain_tokenizer) == before
    with monkeypatch.context() as patch:
        patch.setattr(plain_tokenizer, "split_special_tokens", True)
        assert key_of(config, plain_tokenizer) != before


def test_a_library_that_is_not_installed_is_no_fault(monkeypatch):
    monkeypatch.setattr(prepared, "_LIBRARIES", ("numpy", "no-such-library"))
    prepared._versions.cache_clear()
    assert prepared._versions() == (np.__version__, None)
    prepared._versions.cache_clear()


def test_the_code_that_is_in_the_key(monkeypatch):
    read = []
    monkeypatch.setattr(Path, "read_bytes", lambda file: read.append(file) or b"")
    prepared._code_digest.__wrapped__()
    root = Path(prepared.__file__).parents[2]
    names = {file.relative_to(root).as_posix() for file in read}
    assert {"config/data.py", "config/row_columns.py", "credentials.py", "data/records.py"} <= names
    assert all((root / name).is_file() for name in names)


def test_where_a_source_lies_and_what_is_known_of_it_is_told_as_it_is_now(
    pairs_file, plain_tokenizer, tmp_path, monkeypatch
):
    config = FilesConfig(path=pairs_file, **OPTIONS)
    first = prepare_data(config, plain_tokenizer, "t", tmp_path)
    assert first.report["sources"][0]["licence"] is None
    opened = prepared.open_sources

    def known_now(*arguments):
        sources = opened(*arguments)
        for source in sources:
            source.origin.update(licence="MIT", path="/elsewhere/a.jsonl", sha256=None)
        return sources

    monkeypatch.setattr(prepared, "open_sources", known_now)
    (source,) = prepare_data(config, plain_tokenizer, "t", tmp_path).report["sources"]
    assert (source["licence"], source["path"]) == ("MIT", "/elsewhere/a.jsonl")
    assert source["sha256"] == first.report["sources"][0]["sha256"]  # what isn't known now was known then


@pytest.mark.parametrize(("seconds", "told"), [(0.0, 0), (0.5, 1)])
def test_a_long_wait_for_another_is_told_once(tmp_path, monkeypatch, capsys, seconds, told):
    monkeypatch.setattr(alone, "_PATIENCE", 0.1)
    held = threading.Event()

    def work():
        with FileLock(tmp_path / "a.lock"):
            held.set()
            time.sleep(seconds)

    other = threading.Thread(target=work)
    other.start()
    held.wait()
    with alone.alone(tmp_path / "a.lock", "preparing the data"):
        pass
    other.join()
    waiting = "waiting for another process that is at work on the same: preparing the data"
    assert capsys.readouterr().out.count(waiting) == told
