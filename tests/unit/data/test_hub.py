"""Data sets of the Hub, with the two library calls replaced."""

from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest

from llmtune.config.data import HubDataConfig
from llmtune.data.hub import read_hub, resolve_revision
from llmtune.data.sources import source_digest
from llmtune.errors import DataError

pytestmark = pytest.mark.fast
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = HubDataConfig(id="them/texts", revision="main", split="train[:3]")


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one data set of three rows; records how it was loaded."""
    loads = []
    info = SimpleNamespace(sha=COMMIT, card_data={"license": "mit"})
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision: info)

    def load_dataset(name, subset, *, split, revision):
        loads.append((name, subset, split, revision))
        return datasets.Dataset.from_list([{"text": "one", "n": 1}, {"text": "", "n": 2}, {"text": "two", "n": 3}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return loads


def test_rows_come_from_the_resolved_commit(hub):
    found = read_hub(CONFIG)
    assert hub == [("them/texts", None, "train[:3]", COMMIT)]
    assert [(record.source_line, record.text) for record in found.records] == [(1, "one"), (3, "two")]
    assert found.records[0].source_path == "them/texts@train[:3]"
    assert found.skipped == {"empty text": 1}
    assert (found.origin["revision"], found.origin["licence"], found.origin["rows"]) == (COMMIT, "mit", 3)


def test_bad_rows_are_named(hub, monkeypatch):
    rows = datasets.Dataset.from_list([{"words": "SECRET"}] * 2)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    with pytest.raises(DataError) as caught:
        read_hub(CONFIG)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "them/texts@train[:3]:1",
        "them/texts@train[:3]:2",
    ]
    assert "SECRET" not in str(caught.value)


def test_without_the_hub_only_a_commit_is_a_revision(monkeypatch):
    def unreachable(self, name, revision):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    assert resolve_revision(CONFIG) == (None, None)
    assert source_digest(CONFIG) is None
    assert resolve_revision(HubDataConfig(id="them/texts", revision=COMMIT)) == (COMMIT, None)


def test_a_data_set_that_cannot_be_loaded_is_named_with_the_cure(hub, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"data\.id=them/texts can't be loaded .*set data\.path"):
        read_hub(CONFIG)
    with pytest.raises(DataError, match=r"data\.id is missing"):
        read_hub(HubDataConfig())
