"""The tracker under faults: a store that is away holds nobody up, and gets everything once."""

import resource
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
from record import ASSETS, MOST_SECONDS_ADDED, BadServer, history, locked, make_tracker, twice, wait_for

from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile
from llmtune.tracking.client import Metric, MlflowClient
from llmtune.tracking.dead_runs import mark_dead_runs
from llmtune.tracking.entry import KEPT_FILE
from llmtune.tracking.kept_file import read_kept


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "runs" / "a-run"
    path.mkdir(parents=True)
    RunStatusFile(RunFolder(path).status_file).start()
    return path


def test_a_store_that_comes_back_in_the_run_gets_it_whole_and_the_status_file_names_it(tmp_path, folder, impatient):
    store = tmp_path / "mlflow.db"
    store.mkdir()
    uri = f"sqlite:///{store}"
    tracker = make_tracker(uri, folder)
    assert tracker.run_id is None
    tracker.log_params({"seed": 1})
    for step in (1, 2):
        tracker.log_metrics({"train/loss": 1.0 / step}, step)
    store.rmdir()
    wait_for(lambda: tracker.run_id)
    tracker.log_metrics({"train/loss": 0.1}, 3)
    tracker.close("FINISHED")
    assert _steps(uri, tracker.run_id) == [1, 2, 3]
    run = MlflowClient(uri).get_run(tracker.run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"seed": "1"})
    assert RunStatusFile(RunFolder(folder).status_file).read().mlflow_run_id == tracker.run_id
    assert not (folder / KEPT_FILE).exists()


@pytest.mark.parametrize("fault", ["hanging", "answers 500"])
def test_a_server_that_does_not_serve_holds_nobody_up(tmp_path, folder, monkeypatch, fault):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = BadServer(hangs=fault == "hanging")
    uri = server.uri
    started = time.monotonic()
    tracker = make_tracker(uri, folder)
    tracker.log_params({"seed": 1})
    for step in range(1, 301):
        tracker.log_metrics({"train/loss": 1.0}, step)
    tracker.log_artifact(ASSETS / "examples.jsonl")
    assert time.monotonic() - started < 2
    tracker.close("FINISHED")
    seconds = time.monotonic() - started
    print(f"{fault}: {seconds:.1f} s")
    assert seconds < MOST_SECONDS_ADDED
    server.close()
    _, entries = read_kept(folder / KEPT_FILE)
    assert [entry.kind for entry in entries] == ["params", *["metrics"] * 300, "artifact", "end"]


def test_2000_steps_that_wait_for_a_server_take_little_memory(folder, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server, process, sizes = BadServer(hangs=True), psutil.Process(), {}
    tracker = make_tracker(server.uri, folder)
    for step in range(1, 2001):
        tracker.log_metrics({f"train/{name}": 1.0 / step for name in ("loss", "learning_rate", "grad_norm")}, step)
        sizes[step] = process.memory_info().rss
    tracker.close("FINISHED")
    server.close()
    grown = (sizes[2000] - sizes[200]) / 2**20
    print(f"{grown:.1f} MiB more after 2,000 steps than after 200")
    assert grown < 16
    assert len(read_kept(folder / KEPT_FILE)[1]) == 2001


@pytest.mark.parametrize("dies", ["full", "locked"])
def test_a_store_that_dies_midway_gets_the_rest_once_from_the_run_that_goes_on(
    store, folder, impatient, monkeypatch, dies
):
    monkeypatch.setattr("llmtune.tracking.mlflow.warn", lambda text: None)  # what is shown may go to a large file
    uri = f"sqlite:///{store}"
    tracker = make_tracker(uri, folder)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    wait_for(lambda: _steps(uri, tracker.run_id) == [1])
    broken = _full() if dies == "full" else locked(store)
    with broken:
        for step in (2, 3):
            tracker.log_metrics({"train/loss": 1.0}, step)
        started = time.monotonic()
        tracker.close("KILLED")
        assert time.monotonic() - started < MOST_SECONDS_ADDED
    assert _steps(uri, tracker.run_id) == [1]
    assert (folder / KEPT_FILE).exists()
    again = make_tracker(uri, folder, run_id=tracker.run_id)
    for step in (3, 4):  # the run goes on from step 2
        again.log_metrics({"train/loss": 1.0}, step)
    again.close("FINISHED")
    assert again.run_id == tracker.run_id
    assert Counter(_steps(uri, tracker.run_id)) == {1: 1, 2: 1, 3: 1, 4: 1}
    assert MlflowClient(uri).get_run(tracker.run_id).info.status == "FINISHED"


def _steps(uri, run_id, key="train/loss"):
    return [step for step, _ in history(MlflowClient(uri), run_id, key)]


class _full:
    """No file of this process grows beyond 16 KiB, so that writing to the store fails as it does on a full disk."""

    def __enter__(self):
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, self._before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def test_an_answer_that_never_came_makes_no_second_run(store, folder, impatient, monkeypatch):
    uri = f"sqlite:///{store}"
    create, calls = MlflowClient.create_run, []

    def create_unheard(self, *arguments, **settings):
        made = create(self, *arguments, **settings)
        calls.append(made.info.run_id)
        if len(calls) == 1:
            raise ConnectionError("the answer was lost")
        return made

    monkeypatch.setattr(MlflowClient, "create_run", create_unheard)
    tracker = make_tracker(uri, folder)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    wait_for(lambda: tracker.run_id)
    tracker.close("FINISHED")
    assert calls == [tracker.run_id]
    assert _steps(uri, tracker.run_id) == [1]


@pytest.fixture
def unheard(store, folder, impatient, monkeypatch):
    """A run that sends each kind of entry, the first two answers to each lost; its client and the run."""
    calls = Counter()

    def lose(name):
        send = getattr(MlflowClient, name)

        def send_unheard(*arguments, **settings):
            send(*arguments, **settings)
            kind = "metrics" if "metrics" in settings else name
            calls[kind] += 1
            if calls[kind] <= 2:
                raise ConnectionError("the answer was lost")

        monkeypatch.setattr(MlflowClient, name, send_unheard)

    for name in ("log_batch", "log_inputs", "log_artifact", "set_terminated"):
        lose(name)

    def go():
        uri = f"sqlite:///{store}"
        tracker = make_tracker(uri, folder)
        tracker.log_params({"seed": 1})
        for step in (1, 2, 3):
            tracker.log_metrics({"train/loss": 1.0 / step}, step)
        tracker.log_dataset("mine", "d", "mine.jsonl", "train", 1)
        tracker.log_artifact(ASSETS / "examples.jsonl")
        wait_for(lambda: calls["log_artifact"] > 2)
        tracker.close("FINISHED")
        assert min(calls[name] for name in ("log_batch", "metrics", "log_inputs", "log_artifact")) > 2
        return MlflowClient(uri), MlflowClient(uri).get_run(tracker.run_id)

    return go


def test_what_was_sent_and_its_answer_lost_is_not_there_twice(unheard):
    client, run = unheard()
    assert history(client, run.info.run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert (run.info.status, run.data.params, len(run.inputs.dataset_inputs)) == ("FINISHED", {"seed": "1"}, 1)
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["examples.jsonl"]


def test_control_metrics_that_bear_the_time_of_their_sending_are_there_twice(unheard, monkeypatch):
    def sent_now(key, value, timestamp, step):
        return Metric(key, value, time.time_ns() // 10**6, step)

    monkeypatch.setattr("llmtune.tracking.sending.Metric", sent_now)
    client, run = unheard()
    assert twice([step for step, _ in history(client, run.info.run_id)])


@pytest.mark.parametrize("compares", [True, False])
def test_a_run_that_goes_on_sends_a_step_again_only_where_points_are_not_compared(
    store, folder, impatient, monkeypatch, compares
):
    if not compares:
        monkeypatch.setattr("llmtune.tracking.sending._is_new", lambda key, point, last: True)
    uri, run_id = f"sqlite:///{store}", None
    for steps in ((1, 2, 3), (2, 3, 4)):
        tracker = make_tracker(uri, folder, run_id=run_id)
        for step in steps:
            tracker.log_metrics({"train/loss": 1.0 / step}, step)
        tracker.close("KILLED")
        run_id = tracker.run_id
    assert twice(_steps(uri, run_id)) == ([] if compares else [2, 3])


def test_a_killed_run_is_marked_and_what_it_had_kept_is_sent_by_the_next(store, folder):
    uri, runs_dir = f"sqlite:///{store}", folder.parent
    code = (
        "import os, signal, time; from pathlib import Path\n"
        "from llmtune.runs.status import RunStatusFile\n"
        "from llmtune.tracking.mlflow import MlflowTracker, TrackedRun\n"
        f"run = TrackedRun(experiment='tries', name='a-run', tags={{'run_folder': {str(folder)!r}}})\n"
        f"tracker = MlflowTracker({uri!r}, run, Path('.'))\n"
        f"RunStatusFile(Path({str(folder)!r}) / 'status.json').start(tracker.run_id, {uri!r})\n"
        "tracker.log_metrics({'train/loss': 1.0}, 1)\n"
        "from llmtune.tracking import sending\n"
        "from llmtune.tracking.client import MlflowClient\n"
        f"store = MlflowClient({uri!r})\n"
        "while not store.get_metric_history(tracker.run_id, 'train/loss'): time.sleep(0.05)\n"
        "def away(uri): raise ConnectionError('away')\n"
        "sending.check_store = away\n"
        "tracker.log_metrics({'train/loss': 0.5}, 2)\n"
        f"while not Path({str(folder / KEPT_FILE)!r}).exists(): time.sleep(0.05)\n"
        "tracker.log_metrics({'train/loss': 0.25}, 3)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=100, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    record = RunStatusFile(RunFolder(folder).status_file).read()
    assert record.status == "RUNNING"
    assert _steps(uri, record.mlflow_run_id) == [1]
    assert [found.path for found in mark_dead_runs(runs_dir, uri)] == [folder]
    assert RunStatusFile(RunFolder(folder).status_file).read().status == "KILLED"
    assert _steps(uri, record.mlflow_run_id) == [1, 2, 3]
    assert MlflowClient(uri).get_run(record.mlflow_run_id).info.status == "KILLED"
    assert not (folder / KEPT_FILE).exists()
    assert mark_dead_runs(runs_dir, uri) == []
    assert _steps(uri, record.mlflow_run_id) == [1, 2, 3]


def test_what_is_kept_for_another_store_stays(tmp_path, folder):
    (tmp_path / "mlflow.db").mkdir()
    tracker = make_tracker(f"sqlite:///{tmp_path}/mlflow.db", folder)
    RunStatusFile(RunFolder(folder).status_file).start(None, tracker.uri)
    RunStatusFile(RunFolder(folder).status_file).end("FINISHED")
    tracker.close("FINISHED")
    assert mark_dead_runs(tmp_path / "runs", f"sqlite:///{tmp_path}/other.db") == []
    assert (folder / KEPT_FILE).exists()
    assert not (tmp_path / "other.db").exists()
