import math
import time

import pytest

from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile
from llmtune.tracking.client import MlflowClient
from llmtune.tracking.dead_runs import mark_dead_runs
from llmtune.tracking.entry_queue import QueueSettings
from llmtune.tracking.mlflow import MlflowTracker, TrackedRun


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def warnings(monkeypatch):
    said = []
    for module in ("mlflow", "sending"):
        monkeypatch.setattr(f"llmtune.tracking.{module}.warn", said.append)
    return said


def _tracker(uri, tmp_path, **settings):
    return MlflowTracker(uri, TrackedRun(experiment="tries", name="a run", **settings), tmp_path)


def test_a_run_as_it_stands_in_the_store(uri, tmp_path, warnings):
    tracker = _tracker(uri, tmp_path, parent_run_id="f" * 32, tags={"method": "lora"})
    many = {f"data.option{number}": number for number in range(230)}
    tracker.log_params({"a[0]": None, "seed": 1, "x": True, "l": [1, 2], "hub.token": "s", "long": "x" * 501, **many})
    for step in range(1, 4):
        tracker.log_metrics({"train/loss": 2.0 / step, "train/nan": math.nan}, step)
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "a.txt").write_text("a")
    tracker.log_artifact(tmp_path / "folder", "adapter")
    tracker.log_artifact(tmp_path / "folder" / "sub" / "a.txt")
    tracker.log_dataset("mine", "d" * 64, "https://me:pw@host/mine.jsonl", "train", 12)
    tracker.close("FINISHED")

    client = MlflowClient(uri)
    run = client.get_run(tracker.run_id)
    assert warnings == []
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == "f" * 32
    assert run.data.tags["method"] == "lora"
    few = {key: value for key, value in run.data.params.items() if not key.startswith("data.option")}
    assert few == {"a_0_": "null", "seed": "1", "x": "true", "l": "[1, 2]", "hub.token": "***"}
    assert len(run.data.params) == 235
    history = client.get_metric_history(tracker.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]
    assert math.isnan(run.data.metrics["train/nan"])
    assert {one.path for one in client.list_artifacts(tracker.run_id)} == {"adapter", "a.txt"}
    assert [one.path for one in client.list_artifacts(tracker.run_id, "adapter/sub")] == ["adapter/sub/a.txt"]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.digest, dataset.tags[0].value) == ("d" * 36, "train")
    assert "pw" not in dataset.dataset.source
    assert client.search_runs(run.info.experiment_id, "metrics.`train/loss` < 1 and params.seed = '1'")


def test_a_run_goes_on_without_sending_steps_twice(uri, tmp_path, warnings):
    first = _tracker(uri, tmp_path)
    first.log_params({"seed": 1})
    for step in (1, 2, 3):
        first.log_metrics({"train/loss": 1.0}, step)
    first.log_metrics({"evaluate/loss": 1.0, "evaluate/validation_loss": 1.0}, 3)
    first.close("KILLED")
    again = _tracker(uri, tmp_path, run_id=first.run_id)
    assert again.run_id == first.run_id
    assert MlflowClient(uri).get_run(first.run_id).info.status == "RUNNING"
    again.log_params({"seed": 2, "new": 3})
    for step in (2, 3, 4):
        again.log_metrics({"train/loss": 1.0}, step)
    again.log_metrics({"evaluate/loss": 2.0, "evaluate/validation_loss": 1.0}, 3)
    again.close("FINISHED")
    client = MlflowClient(uri)
    assert [one.step for one in client.get_metric_history(first.run_id, "train/loss")] == [1, 2, 3, 4]
    assert [one.step for one in client.get_metric_history(first.run_id, "evaluate/validation_loss")] == [3]
    run = client.get_run(first.run_id)
    assert (run.info.status, run.data.metrics["evaluate/loss"]) == ("FINISHED", 2.0)
    assert run.data.params == {"seed": "1", "new": "3"}
    assert warnings == []


def test_a_run_that_the_store_lacks_is_made_anew(uri, tmp_path, warnings):
    tracker = _tracker(uri, tmp_path, run_id="e" * 32)
    tracker.close("FINISHED")
    assert tracker.run_id not in (None, "e" * 32)
    assert "is not in sqlite" in warnings[0]


def test_a_store_that_is_away_from_the_start_is_said_once(tmp_path, warnings, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started = time.monotonic()
    tracker = _tracker("http://me:hunter2@127.0.0.1:9", tmp_path)
    tracker.log_params({"seed": 1})
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.log_artifact(tmp_path)
    tracker.log_dataset("mine", "d", "s", "train", 1)
    tracker.close("FINISHED")
    assert time.monotonic() - started < 5
    assert tracker.run_id is None
    assert len(warnings) == 2
    assert "entries did not reach" in warnings[1]
    assert "http://127.0.0.1:9 can't be written to" in warnings[0]
    assert "hunter2" not in warnings[0]


def test_a_store_that_goes_away_is_said_once_and_what_is_missing_is_counted(tmp_path, warnings, monkeypatch):
    tracker = _tracker(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)

    def away(uri):
        raise ConnectionError("nothing listens there")

    monkeypatch.setattr("llmtune.tracking.sending.check_store", away)
    for step in range(5):
        tracker.log_metrics({"train/loss": 1.0}, step)
    tracker.log_artifact(tmp_path)
    tracker.close("FINISHED")
    assert sum("can't be written to" in line for line in warnings) == 1
    assert sum("7 entries did not reach" in line for line in warnings) == 1


def test_what_mlflow_refuses_does_not_block_the_rest(uri, tmp_path, warnings):
    tracker = _tracker(uri, tmp_path)
    tracker.set_tags({"": "no name"})
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.close("FINISHED")
    assert MlflowClient(uri).get_run(tracker.run_id).data.metrics == {"train/loss": 1.0}


def test_system_metrics_stop_at_once_and_bear_their_name(uri, tmp_path, warnings, monkeypatch):
    monkeypatch.setattr("llmtune.tracking.system_metrics._SAMPLING_SECONDS", 0.2)
    quick = QueueSettings(linger_seconds=0.1)
    monkeypatch.setattr("llmtune.tracking.entry_queue.QueueSettings", lambda: quick)
    run = TrackedRun(experiment="tries", name="watched")
    tracker = MlflowTracker(uri, run, tmp_path, system_metrics=True)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    time.sleep(1.5)
    started = time.monotonic()
    tracker.close("FINISHED")
    assert time.monotonic() - started < 2
    names = MlflowClient(uri).get_run(tracker.run_id).data.metrics
    assert "system/cpu_utilization_percentage" in names
    assert warnings == []


def test_a_killed_run_is_marked_in_folder_and_store(uri, tmp_path, monkeypatch):
    tracker = _tracker(uri, tmp_path)
    folder = RunFolder(tmp_path / "runs" / "a")
    RunStatusFile(folder.status_file).start(tracker.run_id, uri)
    assert mark_dead_runs(tmp_path / "runs", uri) == []
    monkeypatch.setattr("llmtune.runs.status.RunRecord.process_is_gone", lambda self: True)
    assert mark_dead_runs(tmp_path / "runs", uri) == [folder]
    assert RunStatusFile(folder.status_file).read().status == "KILLED"
    assert MlflowClient(uri).get_run(tracker.run_id).info.status == "KILLED"
    assert mark_dead_runs(tmp_path / "runs", uri) == []
