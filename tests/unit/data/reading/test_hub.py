"""Data sets of the Hub, by the real client from a stand-in of its interface."""

import errno
import json
import pickle
import sys
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from llmtune.config.data import HubDataConfig, MixtureConfig, SourceConfig
from llmtune.data.reading.blocks import Row
from llmtune.data.reading.hub import HubQuery, resolve
from llmtune.data.reading.sources import open_sources
from llmtune.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[3]))
pytest_plugins = ["hub_stand_in"]
pytestmark = pytest.mark.fast
TOKEN = "hf_neverprinted"
ROWS = [{"text": "one", "n": 1}, {"text": "", "n": 2}, {"text": "two", "n": 3}]


def lines(*rows: dict) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


@pytest.fixture
def stored(hub):
    return hub.add("datasets", "them/texts", {"data.jsonl": lines(*ROWS)})


def config(**changes) -> HubDataConfig:
    return HubDataConfig(**{"id": "them/texts", **changes})


def opened(**changes):
    return open_sources(config(**changes), Path("no-cache"))[0]


def read(**changes):
    source = opened(**changes)
    return source, [entry for block in source.blocks() for entry in block.entries()]


def texts(**changes):
    return [entry.content["text"] for entry in read(**changes)[1]]


def refusal(**changes) -> str:
    with pytest.raises(DataError) as caught:
        read(**changes)
    assert caught.value.exit_status == 2
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_come_from_the_commit_that_the_branch_leads_to(stored):
    source, found = read(split="train[1:3]")
    assert found == [Row(1, ROWS[1]), Row(2, ROWS[2])]
    assert [block.path for block in source.blocks()] == [source.name] == ["them/texts@train[1:3]"]
    assert (source.origin["kind"], source.origin["revision"]) == ("hub", stored.refs["main"])
    assert (source.origin["licence"], source.origin["subset"], source.origin["split"]) == (
        "mit",
        "default",
        "train[1:3]",
    )
    assert opened(licence="own").origin["licence"] == "own"


def test_parquet_in_a_folder(hub, tmp_path):
    datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}]).to_parquet(tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    hub.add("datasets", "them/texts", {"data/train-00000-of-00001.parquet": content, "README.md": b"---\n---\n"})
    assert texts() == ["a", "b"]


def test_values_of_several_kinds_come_as_they_are(hub):
    rows = [{"text": "a", "calls": [{"args": {"n": 1}}]}, {"text": "b", "calls": [{"args": {"n": "x", "m": [1]}}]}]
    hub.add("datasets", "them/texts", {"data.jsonl": lines(*rows)})
    assert [entry.content for entry in read()[1]] == [*datasets.load_dataset("them/texts", split="train")]


def test_rows_come_in_blocks_that_travel(hub):
    hub.add("datasets", "them/texts", {"data.jsonl": lines(*({"text": f"{n}" * 900} for n in range(3000)))})
    source = opened()
    blocks = list(source.blocks())
    assert len(blocks) >= 3
    found = [entry for block in pickle.loads(pickle.dumps(blocks)) for entry in block.entries()]
    assert found == [Row(n + 1, {"text": f"{n}" * 900}) for n in range(3000)]


def test_each_commit_is_read_from_the_cache_as_itself(hub, stored, monkeypatch):
    first = stored.refs["main"]
    assert texts() == ["one", "", "two"]
    second = stored.commit({"data.jsonl": lines({"text": "three"})})
    assert texts() == ["three"]
    digest = opened().digest
    hub.close()
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        assert (texts(revision=first), opened(revision=first).origin["revision"]) == (["one", "", "two"], first)
        assert (texts(), opened().origin["revision"]) == (["three"], second)
        assert opened().digest == digest != opened(revision=first).digest
    assert "data.revision=v2: not in the Hub cache, and HF_HUB_OFFLINE is set" in refusal(revision="v2")
    assert "not in the Hub cache" in refusal(revision="b" * 40)


def test_without_the_hub_a_branch_is_what_it_last_was(hub, stored):
    def resolved(**changes):
        found = resolve(HubQuery("them/texts", None, "train", changes.get("revision")))
        return found.sha, found.licence

    assert resolved() == (stored.refs["main"], "mit")
    hub.close()
    assert resolved() == (stored.refs["main"], None)
    assert resolved(revision="dev") == (None, None)
    assert resolved(revision="a" * 40) == ("a" * 40, None)
    assert "the Hub can't be reached; check the network and try again, or download the file" in refusal()


def test_a_source_of_a_mixture_is_named_by_its_own_keys(hub, stored):
    def mixed(**entry):
        return open_sources(MixtureConfig(sources=(SourceConfig(**{"id": "them/texts", **entry}),)), Path("no-cache"))

    (source,) = mixed(weight=3, text_column="body")
    assert (source.weight, source.rows.text_column, source.digest) == (3, "body", opened().digest)
    with pytest.raises(DataError, match=r"^data\.sources\[0\]\.id=them/none: the Hub has no such data set"):
        mixed(id="them/none")
    with pytest.raises(DataError, match=r"data\.sources\[0\]\.subset or data\.sources\[0\]\.split doesn't fit"):
        list(mixed(split="nope")[0].blocks())


def test_several_subsets_in_the_cache_are_not_guessed_between(hub, stored):
    card = b"---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n"
    stored.commit({"a.jsonl": lines({"text": "a"}), "b.jsonl": lines({"text": "b"}), "README.md": card})
    for subset in ("a", "b"):
        assert texts(subset=subset) == [subset]
    assert "doesn't fit" in refusal()
    hub.close()
    assert refusal() == "data.id=them/texts: the cache holds several; set data.subset to one of a, b"
    assert texts(subset="b") == ["b"]


def test_who_may_not_read_is_told_why(hub, stored, monkeypatch):
    stored.gated = True
    page = f"{hub.address}/datasets/them/texts"
    assert f"this data set needs an account with access: ask for it on {page}" in refusal()
    hub.account(TOKEN, "me")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert f"your account has no access to this data set yet; ask for it on {page}" in refusal()
    stored.gated, stored.private = False, True
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
def test_what_is_not_there_is_named(stored, changes, text):
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
def test_a_hub_that_does_not_deliver(hub, stored, part, how, text):
    hub.fail(part, how)
    assert text in refusal()
    hub.faults.clear()
    assert len(texts()) == 3


def test_a_file_that_cannot_be_read_is_told(hub):
    hub.add("datasets", "them/texts", {"data.jsonl": b'{"text": "a"}\n{"text": \n'})
    assert "data.id=them/texts can't be loaded (JSON parse error" in refusal()


def test_a_folder_of_the_same_name_is_not_read_instead(stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "them" / "texts").mkdir(parents=True)
    assert "a folder of that name stands here" in refusal()


def test_a_full_disk_is_named_and_leaves_nothing_to_trust(stored, monkeypatch):
    from huggingface_hub import file_download

    def full(url, file, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", full)
        assert "data.id=them/texts: no space left: make room" in refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the Hub cache" in refusal()


def test_its_size_is_that_of_its_rows(hub):
    hub.add("datasets", "them/texts", {"data.jsonl": lines(*({"text": "x" * 1000} for _ in range(300)))})
    assert 300_000 < opened().num_bytes() < 310_000
    assert 9_000 < opened(split="train[:10]").num_bytes() < 12_000
