"""The record under faults: a store that is away costs training neither weights nor time, and misses nothing."""

import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.manifest import Manifest
from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile
from llmtune.tracking.client import MlflowClient
from llmtune.tracking.dead_runs import mark_dead_runs
from llmtune.tracking.entry import KEPT_FILE, read_kept
from llmtune.tracking.entry_queue import QueueSettings
from llmtune.tracking.mlflow import MlflowTracker, TrackedRun

ASSETS = Path(__file__).parent.parent / "assets"
MOST_SECONDS_ADDED = 5.0
TRAIN = [
    "train",
    "hardware.num_threads=1",
    "hardware=cpu",
    "data.max_seq_len=64",
    "data.num_examples=64",
    "train.num_epochs=1",
    f"model={ASSETS / 'tiny_llama'}",
    f"data.path={ASSETS / 'examples.jsonl'}",
    "tracking.system_metrics=false",
    "cache_dir=cache",
]


@dataclass(frozen=True)
class Trained:
    """What a run left."""

    folder: RunFolder
    seconds: float
    """From the start of the stages to their end."""

    @property
    def weights(self) -> str:
        return json.dumps(Manifest(self.folder.manifest_file).stage("train")["weights_sha256"])

    @property
    def sent_steps(self) -> list[int]:
        """Steps whose loss goes to the store."""
        return [step for step, _ in MetricsLog(self.folder.metrics_file).losses("train/loss")]

    @property
    def kept(self) -> Path:
        return self.folder.path / KEPT_FILE


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train in this process, in a fresh folder; the store is `tracking.uri`."""
    from llmtune.cli import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def go(*words: str) -> Trained:
        started = time.monotonic()
        assert run([*TRAIN, "train.log_every_steps=1", *words]) == 0
        return Trained(list_runs(Path("runs"))[0].folder, time.monotonic() - started)

    return go


class Server:
    """Stands where a tracking server should be; `behaves` says how."""

    def __init__(self, answer=None):
        self.requests = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self):
                owner.requests += 1
                body = json.dumps({"error_code": "INTERNAL_ERROR", "message": "broken"}).encode()
                self.send_response(500)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PATCH = do_PUT = handle_any

            def log_message(self, *arguments):
                pass

        if answer == "hang":
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
            self.port = self._listener.getsockname()[1]
            self._server = None
        else:
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            self.port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        else:
            self._listener.close()


def _uri_of(fault: str, tmp_path: Path) -> tuple[str, Server | None]:
    if fault == "refused":
        return "http://127.0.0.1:9", None
    if fault in ("hanging", "answers 500"):
        server = Server("hang" if fault == "hanging" else None)
        return f"http://127.0.0.1:{server.port}", server
    if fault == "a folder":
        (tmp_path / "folder.db").mkdir()
        return f"sqlite:///{tmp_path}/folder.db", None
    (tmp_path / "damaged.db").write_text("no SQLite file" * 100)
    return f"sqlite:///{tmp_path}/damaged.db", None


FAULTS = ("refused", "hanging", "answers 500", "a folder", "no SQLite file")


@pytest.mark.slow
def test_a_store_that_is_away_changes_no_weight_adds_little_time_and_everything_is_kept(train, tmp_path, capsys):
    train()  # imports, prepared data
    control = train()
    assert not control.kept.exists()
    for fault in FAULTS:
        uri, server = _uri_of(fault, tmp_path)
        capsys.readouterr()
        trained = train(f"tracking.uri={uri}")
        if server is not None:
            server.close()
        said = capsys.readouterr().out
        added = trained.seconds - control.seconds
        print(f"{fault}: {added:+.1f} s")
        assert trained.weights == control.weights, fault
        assert added < MOST_SECONDS_ADDED, fault
        assert said.count("can't be written to") == 1, fault
        _, entries = read_kept(trained.kept)
        losses = [entry for entry in entries if entry.kind == "metrics" and "train/loss" in entry.content["values"]]
        assert [entry.content["step"] for entry in losses] == control.sent_steps, fault
        assert entries[-1].kind == "end", fault


def test_a_run_goes_on_when_the_store_is_a_folder_and_the_next_run_sends_what_was_kept(train, tmp_path, capsys):
    store = tmp_path / "mlflow.db"
    store.mkdir()
    first = train()
    assert RunStatusFile(first.folder.status_file).read().mlflow_run_id is None
    assert first.kept.exists()
    store.rmdir()
    second = train()
    assert not first.kept.exists()
    assert first.weights == second.weights
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("llmtune").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {first.folder.path.name, second.folder.path.name}
    for trained in (first, second):
        run = runs[trained.folder.path.name]
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [one.step for one in history] == trained.sent_steps
        assert run.info.status == "FINISHED"
    params = [runs[trained.folder.path.name].data.params for trained in (first, second)]
    assert params[0] == params[1]
    assert len(params[0]) > 50
    inputs = [len(runs[trained.folder.path.name].inputs.dataset_inputs) for trained in (first, second)]
    assert inputs[0] == inputs[1] > 0
    train()  # and nothing is sent again
    assert len(client.search_runs([experiment])) == 3
    assert len(client.get_metric_history(runs[first.folder.path.name].info.run_id, "train/loss")) == len(
        first.sent_steps
    )


def _tracker(uri, folder, **settings):
    tags = {"run_folder": str(folder)}
    return MlflowTracker(uri, TrackedRun(experiment="tries", name=folder.name, tags=tags, **settings), folder)


def _steps(uri, run_id, key="train/loss"):
    return [one.step for one in MlflowClient(uri).get_metric_history(run_id, key)]


@pytest.fixture
def impatient(monkeypatch):
    """Two attempts follow each other at once."""
    quick = QueueSettings(linger_seconds=0.05, retry_seconds=0.1)
    monkeypatch.setattr("llmtune.tracking.entry_queue.QueueSettings", lambda: quick)


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
    tracker = _tracker(uri, folder)
    assert tracker.run_id is None
    tracker.log_params({"seed": 1})
    for step in (1, 2):
        tracker.log_metrics({"train/loss": 1.0 / step}, step)
    store.rmdir()
    _wait_for(lambda: tracker.run_id)
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
    uri, server = _uri_of(fault, tmp_path)
    started = time.monotonic()
    tracker = _tracker(uri, folder)
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


@pytest.mark.parametrize("dies", ["full", "locked"])
def test_a_store_that_dies_midway_gets_the_rest_once_from_the_run_that_goes_on(
    tmp_path, folder, impatient, monkeypatch, dies
):
    monkeypatch.setattr("llmtune.tracking.mlflow.warn", lambda text: None)  # what is shown may go to a large file
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = _tracker(uri, folder)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    _wait_for(lambda: _steps(uri, tracker.run_id) == [1])
    broken = _full() if dies == "full" else _locked(tmp_path / "mlflow.db")
    with broken:
        for step in (2, 3):
            tracker.log_metrics({"train/loss": 1.0}, step)
        started = time.monotonic()
        tracker.close("KILLED")
        assert time.monotonic() - started < MOST_SECONDS_ADDED
    assert _steps(uri, tracker.run_id) == [1]
    assert (folder / KEPT_FILE).exists()
    again = _tracker(uri, folder, run_id=tracker.run_id)
    for step in (3, 4):  # the run goes on from step 2
        again.log_metrics({"train/loss": 1.0}, step)
    again.close("FINISHED")
    assert again.run_id == tracker.run_id
    assert Counter(_steps(uri, tracker.run_id)) == {1: 1, 2: 1, 3: 1, 4: 1}
    assert MlflowClient(uri).get_run(tracker.run_id).info.status == "FINISHED"


class _locked:
    """Another program holds the store."""

    def __init__(self, store):
        self._connection = sqlite3.connect(store, isolation_level=None)

    def __enter__(self):
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_):
        self._connection.execute("ROLLBACK")
        self._connection.close()


class _full:
    """No file of this process grows beyond 16 KiB, so that writing to the store fails as it does on a full disk."""

    def __enter__(self):
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, self._before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def test_an_answer_that_never_came_makes_no_second_run(tmp_path, folder, impatient, monkeypatch):
    from llmtune.tracking import client

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    create, calls = client.MlflowClient.create_run, []

    def create_unheard(self, *arguments, **settings):
        made = create(self, *arguments, **settings)
        calls.append(made.info.run_id)
        if len(calls) == 1:
            raise ConnectionError("the answer was lost")
        return made

    monkeypatch.setattr(client.MlflowClient, "create_run", create_unheard)
    tracker = _tracker(uri, folder)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    _wait_for(lambda: tracker.run_id)
    tracker.close("FINISHED")
    assert calls == [tracker.run_id]
    assert _steps(uri, tracker.run_id) == [1]


def test_metrics_whose_answer_was_lost_are_not_there_twice(tmp_path, folder, impatient, monkeypatch):
    from llmtune.tracking import client

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    send, calls = client.MlflowClient.log_batch, []

    def send_unheard(self, *arguments, **settings):
        send(self, *arguments, **settings)
        calls.append(settings)
        if len(calls) <= 2:
            raise ConnectionError("the answer was lost")

    monkeypatch.setattr(client.MlflowClient, "log_batch", send_unheard)
    tracker = _tracker(uri, folder)
    for step in (1, 2, 3):
        tracker.log_metrics({"train/loss": 1.0}, step)
    _wait_for(lambda: len(calls) > 2)
    tracker.close("FINISHED")
    assert _steps(uri, tracker.run_id) == [1, 2, 3]


def test_a_killed_run_is_marked_and_what_it_had_kept_is_sent_by_the_next(tmp_path, folder, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    code = (
        "import os, signal, time; from pathlib import Path\n"
        "from llmtune.runs.status import RunStatusFile\n"
        "from llmtune.tracking.mlflow import MlflowTracker, TrackedRun\n"
        f"run = TrackedRun(experiment='tries', name='a-run', tags={{'run_folder': {str(folder)!r}}})\n"
        f"tracker = MlflowTracker({uri!r}, run, Path('.'))\n"
        f"RunStatusFile(Path({str(folder)!r}) / 'status.json').start(tracker.run_id, {uri!r})\n"
        "tracker.log_metrics({'train/loss': 1.0}, 1)\n"
        "time.sleep(2)\n"
        "from llmtune.tracking import sending\n"
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
    assert [found.path for found in mark_dead_runs(tmp_path / "runs", uri)] == [folder]
    assert RunStatusFile(RunFolder(folder).status_file).read().status == "KILLED"
    assert _steps(uri, record.mlflow_run_id) == [1, 2, 3]
    assert MlflowClient(uri).get_run(record.mlflow_run_id).info.status == "KILLED"
    assert not (folder / KEPT_FILE).exists()
    assert mark_dead_runs(tmp_path / "runs", uri) == []
    assert _steps(uri, record.mlflow_run_id) == [1, 2, 3]


def test_what_is_kept_for_another_store_stays(tmp_path, folder):
    (tmp_path / "mlflow.db").mkdir()
    tracker = _tracker(f"sqlite:///{tmp_path}/mlflow.db", folder)
    RunStatusFile(RunFolder(folder).status_file).start(None, tracker.uri)
    RunStatusFile(RunFolder(folder).status_file).end("FINISHED")
    tracker.close("FINISHED")
    assert mark_dead_runs(tmp_path / "runs", f"sqlite:///{tmp_path}/other.db") == []
    assert (folder / KEPT_FILE).exists()
    assert not (tmp_path / "other.db").exists()


@pytest.mark.slow
def test_two_runs_started_at_once_share_a_fresh_store(tmp_path):
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llmtune", *TRAIN, "data.num_examples=16"]
    runs = [
        subprocess.Popen([*command, f"cache_dir={tmp_path}/cache{n}"], cwd=tmp_path, env=environment) for n in (1, 2)
    ]
    assert [run.wait(200) for run in runs] == [0, 0]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("llmtune").experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FINISHED"] * 2
    assert not list((tmp_path / "runs").glob(f"*/{KEPT_FILE}"))


def test_no_secret_of_the_store_is_kept_and_harmless_keys_are(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    tracker = _tracker("http://me:canaryUriDDDD@127.0.0.1:9/x", folder)
    tracker.log_params({"hub.token": "canaryParamEEEE", "generate.max_tokens": 7, "use_cls_token": True})
    tracker.log_dataset("mine", "d", "https://me:canarySourceFFFF@host/mine.jsonl", "train", 1)
    tracker.set_tags({"origin": "https://me:canaryTagGGGG@host"})
    tracker.close("FAILED")
    written = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert re.findall(rb"canary\w+", written) == []
    _, entries = read_kept(folder / KEPT_FILE)
    (params,) = [entry.content for entry in entries if entry.kind == "params"]
    assert params == {"hub.token": "***", "generate.max_tokens": "7", "use_cls_token": "true"}


def _wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
