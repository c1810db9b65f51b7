"""Data sets of the Hub, by the real client from a stand-in of its interface."""

import errno
import json
import sys
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from llmtune.config.data import HubDataConfig
from llmtune.data.hub import read_hub, resolve_revision
from llmtune.data.sources import source_digest
from llmtune.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[2]))
pytest_plugins = ["hub_stand_in"]
pytestmark = pytest.mark.fast
TOKEN = "hf_neverprinted"
ROWS = [{"text": "one", "n": 1}, {"text": "", "n": 2}, {"text": "two", "n": 3}]


def lines(*rows: dict) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


@pytest.fixture
def texts(hub):
    return hub.add("datasets", "them/texts", {"data.jsonl": lines(*ROWS)})


def config(**changes) -> HubDataConfig:
    return HubDataConfig(**{"id": "them/texts", **changes})


def refusal(**changes) -> str:
    with pytest.raises(DataError) as caught:
        read_hub(config(**changes))
    assert caught.value.exit_status == 2
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_come_from_the_commit_that_the_branch_leads_to(texts):
    found = read_hub(config(split="train[:3]"))
    assert [(record.source_line, record.text) for record in found.records] == [(1, "one"), (3, "two")]
    assert found.records[0].source_path == "them/texts@train[:3]"
    assert found.skipped == {"empty text": 1}
    assert found.origin["revision"] == texts.refs["main"]
    assert (found.origin["licence"], found.origin["subset"], found.origin["rows"]) == ("mit", "default", 3)


def test_parquet_in_a_folder(hub, tmp_path):
    datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}]).to_parquet(tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    hub.add("datasets", "them/texts", {"data/train-00000-of-00001.parquet": content, "README.md": b"---\n---\n"})
    assert [record.text for record in read_hub(config()).records] == ["a", "b"]


def test_bad_rows_are_named(hub):
    hub.add("datasets", "them/texts", {"data.jsonl": lines({"words": "SECRET"}, {"words": "SECRET"})})
    with pytest.raises(DataError) as caught:
        read_hub(config())
    assert [problem.split(": ")[0] for problem in caught.value.problems] == ["them/texts@train:1", "them/texts@train:2"]
    assert "SECRET" not in str(caught.value)


def test_each_commit_is_read_from_the_cache_as_itself(hub, texts, monkeypatch):
    first = texts.refs["main"]
    read_hub(config())
    second = texts.commit({"data.jsonl": lines({"text": "three"})})
    assert [record.text for record in read_hub(config()).records] == ["three"]
    hub.close()
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        old, new = read_hub(config(revision=first)), read_hub(config())
        assert ([record.text for record in old.records], old.origin["revision"]) == (["one", "two"], first)
        assert ([record.text for record in new.records], new.origin["revision"]) == (["three"], second)
        assert source_digest(config()) == second
    assert "data.revision=v2: not in the Hub cache, and HF_HUB_OFFLINE is set" in refusal(revision="v2")
    assert "not in the Hub cache" in refusal(revision="b" * 40)


def test_without_the_hub_a_branch_is_what_it_last_was(hub, texts):
    assert resolve_revision(config()) == (texts.refs["main"], "mit")
    hub.close()
    assert resolve_revision(config()) == (texts.refs["main"], None)
    assert resolve_revision(config(revision="dev")) == (None, None)
    assert resolve_revision(config(revision="a" * 40)) == ("a" * 40, None)
    assert "the Hub can't be reached; check the network and try again, or download the file" in refusal()


def test_several_subsets_in_the_cache_are_not_guessed_between(hub, texts):
    card = b"---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n"
    texts.commit({"a.jsonl": lines({"text": "a"}), "b.jsonl": lines({"text": "b"}), "README.md": card})
    for subset in ("a", "b"):
        assert read_hub(config(subset=subset)).records[0].text == subset
    assert "doesn't fit" in refusal()
    hub.close()
    assert refusal() == "data.id=them/texts: the cache holds several; set data.subset to one of a, b"
    assert read_hub(config(subset="b")).records[0].text == "b"


def test_who_may_not_read_is_told_why(hub, texts, monkeypatch):
    texts.gated = True
    page = f"{hub.address}/datasets/them/texts"
    assert f"this data set needs an account with access: ask for it on {page}" in refusal()
    hub.account(TOKEN, "me")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert f"your account has no access to this data set yet; ask for it on {page}" in refusal()
    texts.gated, texts.private = False, True
    assert "the Hub has no such data set, or it is private; check the id, or use a token" in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert "the token in HF_TOKEN: it is wrong or expired" in refusal()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"revision": "v9"}, "data.revision=v9: the data set has no such branch, tag or commit"),
        ({"split": "nope"}, 'data.subset or data.split doesn\'t fit: Unknown split "nope"'),
        ({"subset": "nope"}, "data.subset or data.split doesn't fit: BuilderConfig 'nope' not found"),
        ({"id": "them/nothing"}, "data.id=them/nothing: the Hub has no such data set"),
        ({"id": "a/b/c"}, "not a Hub id"),
        ({"id": None}, "data.id is missing"),
    ],
)
def test_what_is_not_there_is_named(texts, changes, text):
    assert text in refusal(**changes)


@pytest.mark.parametrize(
    ("part", "how", "text"),
    [
        ("/api/", 429, "takes no more requests for now (rate limit)"),
        ("/api/", 503, "out of order (status 503)"),
        ("/api/", "hang", "gave no answer within 1 s"),
        ("GET /datasets", "drop", "broke off the connection"),
    ],
)
def test_a_hub_that_does_not_deliver(hub, texts, part, how, text):
    hub.fail(part, how)
    assert text in refusal()
    hub.faults.clear()
    assert len(read_hub(config()).records) == 2


def test_a_file_that_cannot_be_read_is_told(hub):
    hub.add("datasets", "them/texts", {"data.jsonl": b'{"text": "a"}\n{"text": \n'})
    assert "data.id=them/texts can't be loaded (JSON parse error" in refusal()


def test_a_folder_of_the_same_name_is_not_read_instead(texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "them" / "texts").mkdir(parents=True)
    assert "a folder of that name stands here" in refusal()


def test_a_full_disk_is_named_and_leaves_nothing_to_trust(texts, monkeypatch):
    from huggingface_hub import file_download

    def full(url, file, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", full)
        assert "data.id=them/texts: no space left: make room" in refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the Hub cache" in refusal()
