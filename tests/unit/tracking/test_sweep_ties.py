"""A sweep's run and its jobs' are parent and children, whichever of them the store gets first."""

from contextlib import contextmanager

import pytest

from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile
from llmtune.tracking.client import MlflowClient
from llmtune.tracking.dead_runs import mark_dead_runs
from llmtune.tracking.mlflow import MlflowTracker, TrackedRun
from llmtune.tracking.sending import RunSender

SWEEP = "20260101-000000-sweep-0123"
JOBS = ("20260101-000001-lora-tiny-4567", "20260101-000002-full-tiny-89ab")


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def record(tmp_path, uri, monkeypatch):
    """Records a run of the sweep from its start to its end."""
    monkeypatch.setattr("llmtune.tracking.mlflow.warn", lambda text: None)

    def go(name):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        status, tags = RunStatusFile(RunFolder(folder).status_file), {"run_folder": str(folder)}
        is_sweep = name == SWEEP
        run = TrackedRun(
            experiment=tmp_path.name,
            name=name,
            sweep=None if is_sweep else SWEEP,
            tags={"kind": "sweep", **tags} if is_sweep else tags,
        )
        tracker = MlflowTracker(uri, run, tmp_path)
        status.start(tracker.run_id, uri)
        status.end("FINISHED")
        tracker.close("FINISHED")

    return go


@contextmanager
def _away(monkeypatch):
    def refuse(*arguments):
        raise ConnectionError("away")

    with monkeypatch.context() as away:
        away.setattr("llmtune.tracking.sending.open_store", refuse)
        yield


def _parents(uri, experiment):
    """Names of the runs that have a parent, and the names of those."""
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len(runs) == 1 + len(JOBS)
    names = {run.info.run_id: run.info.run_name for run in runs}
    tags = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in runs}
    return {name: names[parent] for name, parent in tags.items() if parent is not None}


def test_jobs_that_the_store_gets_before_their_sweep(record, uri, tmp_path, monkeypatch):
    with _away(monkeypatch):
        record(SWEEP)
    for job in JOBS:
        record(job)
    mark_dead_runs(tmp_path / "runs", uri)
    assert _parents(uri, tmp_path.name) == dict.fromkeys(JOBS, SWEEP)


def test_jobs_that_the_store_gets_after_their_sweep(record, uri, tmp_path, monkeypatch):
    with _away(monkeypatch):
        for job in JOBS:
            record(job)
    record(SWEEP)
    mark_dead_runs(tmp_path / "runs", uri)
    assert _parents(uri, tmp_path.name) == dict.fromkeys(JOBS, SWEEP)


def test_a_sweep_and_jobs_that_are_all_sent_later(record, uri, tmp_path, monkeypatch):
    with _away(monkeypatch):
        for name in (SWEEP, *JOBS):
            record(name)
    mark_dead_runs(tmp_path / "runs", uri)
    assert _parents(uri, tmp_path.name) == dict.fromkeys(JOBS, SWEEP)
    mark_dead_runs(tmp_path / "runs", uri)
    assert _parents(uri, tmp_path.name) == dict.fromkeys(JOBS, SWEEP)


def test_a_job_that_goes_on_by_itself_still_belongs_to_its_sweep(record, uri, tmp_path, monkeypatch):
    with _away(monkeypatch):
        for job in JOBS:
            record(job)
    record(SWEEP)
    for name in JOBS:
        folder = tmp_path / "runs" / name
        run = TrackedRun(experiment=tmp_path.name, name=name, tags={"run_folder": str(folder)})
        MlflowTracker(uri, run, tmp_path).close("FINISHED")
    assert _parents(uri, tmp_path.name) == dict.fromkeys(JOBS, SWEEP)


def test_control_without_the_tie_they_stand_side_by_side(record, uri, tmp_path, monkeypatch):
    monkeypatch.setattr(RunSender, "_tie_to_sweep", lambda self, client, run_id: None)
    with _away(monkeypatch):
        record(SWEEP)
    for job in JOBS:
        record(job)
    mark_dead_runs(tmp_path / "runs", uri)
    assert _parents(uri, tmp_path.name) == {}
