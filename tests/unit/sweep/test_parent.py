"""What a sweep says of its record."""

from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from llmtune.runs.layout import RunFolder
from llmtune.sweep import parent
from llmtune.sweep.job import SweepSettings
from llmtune.sweep.known_runs import KnownRuns
from llmtune.sweep.parent import SweepRecord

pytestmark = pytest.mark.fast
PARENT, KNOWN, UNKNOWN = "a" * 32, "b" * 32, "f" * 32


@pytest.fixture
def record(tmp_path, monkeypatch) -> SweepRecord:
    """The record of a sweep whose store knows one run of two."""
    tracker = SimpleNamespace(run_id=PARENT, experiment_id="7", log_params=lambda params: None)
    monkeypatch.setattr(parent, "MlflowTracker", lambda *arguments: tracker)
    monkeypatch.setattr(
        parent, "known_runs", lambda uri, run_ids: KnownRuns(tuple(one for one in run_ids if one == KNOWN), "7")
    )
    settings = SweepSettings(folder=RunFolder(tmp_path), experiment="e", tracking_uri="sqlite:////x.db")
    return SweepRecord(settings, [])


@pytest.mark.parametrize(("run_ids", "is_linked"), [([KNOWN, UNKNOWN], True), ([UNKNOWN], False)])
def test_it_links_those_runs_that_its_store_knows(record, capsys, run_ids, is_linked) -> None:
    record.say_links(run_ids)
    shown = unquote("".join(capsys.readouterr().out.split()))
    assert (KNOWN in shown) == ("compare-runs?runs=" in shown) == is_linked
    assert UNKNOWN not in shown and PARENT in shown
