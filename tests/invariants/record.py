"""Trains in this process with a store that a test chooses, and reads what folder and store say of it."""

import json
import socket
import sqlite3
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.runs.metrics_log import MetricsLog
from llmtune.stages import record
from llmtune.tracking.client import MlflowClient
from llmtune.tracking.entry import KEPT_FILE
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
    "train.log_every_steps=1",
    "cache_dir=cache",
]

SECRETS = {
    "HF_TOKEN": "hf_canaryTokenAAAA",
    "MLFLOW_TRACKING_PASSWORD": 'canary"Quoted\\pass/word+BBBB',
    "AWS_SECRET_ACCESS_KEY": "canaryAws/Key+CCCC",
    "SOME_SERVICE_API_KEY": "canaryÄpiKeyDDDD",
    **{
        name: f"canary{number}Secret"
        for number, name in enumerate(
            (
                *("PGPASSWORD", "MYSQL_PWD", "SSHPASS", "DB_PASS", "GITHUB_PAT", "PASSPHRASE", "AUTHORIZATION"),
                *("AUTHTOKEN", "JWT", "STRIPE_KEY", "HF_API_TOKENS"),
            )
        )
    },
}
"""Environment variables whose values may be written nowhere: each holds `canary` in every spelling."""
ADDRESSES = (
    "http://me:canaryPlain@127.0.0.1:9",
    "http://me:pass@canaryAt@127.0.0.1:9",
    "http://me:canary/Slash@127.0.0.1:9",
    "http://me:9/canary@127.0.0.1:9",
    "http://me:canary?Mark@127.0.0.1:9",
    "http://127.0.0.1:9/?token=canaryQuery",
    "http://127.0.0.1:9/x?user=me&password=canaryQuery",
)
"""Addresses of a store, where nothing listens, that hold what may be written nowhere."""


def hits(work: Path) -> list[str]:
    """The files under a folder in which a byte of a canary stands."""
    files = [file for file in work.rglob("*") if file.is_file()]
    assert files
    return [str(file.relative_to(work)) for file in files if b"canary" in file.read_bytes()]


@dataclass(frozen=True)
class Trained:
    """What a run left."""

    folder: RunFolder
    seconds: float = 0.0
    """From the start of the stages to their end."""
    tracker_seconds: float = 0.0
    """Of these, what the tracker took of the thread that trains: opening, each call, closing."""

    @property
    def weights(self) -> str:
        """Digests of the weights."""
        return json.dumps(Manifest(self.folder.manifest_file).stage("train")["weights_sha256"])

    @property
    def kept(self) -> Path:
        """The file that keeps what the store has not taken."""
        return self.folder.path / KEPT_FILE

    @property
    def sent_steps(self) -> list[int]:
        """Steps whose loss goes to the store."""
        return [step for step, _ in self.losses]

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Each step's loss, as the folder has it."""
        return MetricsLog(self.folder.metrics_file).losses("train/loss")


def steps_by_metric(folder: RunFolder) -> dict[str, list[int]]:
    """The steps of each metric in a run's folder."""
    found: dict[str, list[int]] = {}
    for entry in MetricsLog(folder.metrics_file).read():
        for name in entry.keys() - {"step"}:
            found.setdefault(name, []).append(entry["step"])
    return found


def history(client: MlflowClient, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    """What the store holds of a metric, by step."""
    return sorted((one.step, one.value) for one in client.get_metric_history(run_id, key))


def twice(steps: list[int]) -> list[int]:
    """Steps that are there more than once."""
    return [step for step, count in Counter(steps).items() if count > 1]


def run_named(client: MlflowClient, name: str, experiment: str = "llmtune") -> Any:
    """The one MLflow run of that name."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id], f"attributes.run_name = '{name}'")
    return run


def make_tracker(uri: str, folder: Path, **settings: Any) -> MlflowTracker:
    """A tracker of a run in `folder`."""
    tags = {"run_folder": str(folder)}
    return MlflowTracker(uri, TrackedRun(experiment="tries", name=folder.name, tags=tags, **settings), folder)


@contextmanager
def locked(store: Path):
    """Another program holds the SQLite store."""
    connection = sqlite3.connect(store, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


class Stopwatch:
    """Counts the time that the thread which trains spends in the tracker; calls inside others count once.

    Args:
        monkeypatch: undoes the counting at the test's end.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self.seconds = 0.0
        self._is_inside = False
        monkeypatch.setattr(record, "open_tracker", self._counted(record.open_tracker))
        for name in ("log_params", "set_tags", "log_metrics", "log_artifact", "log_dataset", "close"):
            monkeypatch.setattr(MlflowTracker, name, self._counted(getattr(MlflowTracker, name)))

    def _counted(self, call: Any) -> Any:
        def counted(*arguments: Any, **settings: Any) -> Any:
            if self._is_inside:
                return call(*arguments, **settings)
            self._is_inside, started = True, time.perf_counter()
            try:
                return call(*arguments, **settings)
            finally:
                self._is_inside = False
                self.seconds += time.perf_counter() - started

        return counted


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def at_step(runs: Path, what_by_step: dict[int, Any]):
    """Do something once the newest run under `runs` has recorded so many steps, while it trains in this process."""
    known = set(runs.glob("*/metrics.jsonl"))
    ended, did = threading.Event(), []

    def num_lines() -> int:
        return sum(file.read_bytes().count(b"\n") for file in set(runs.glob("*/metrics.jsonl")) - known)

    def watch() -> None:
        for step, act in sorted(what_by_step.items()):
            while num_lines() < step and not ended.is_set():
                time.sleep(0.01)
            if not ended.is_set():
                act()
                did.append(step)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(60)
    assert did == sorted(what_by_step), "the run ended before all was done"


class BadServer:
    """Stands where a tracking server should be: it answers every request with an error, or takes it and is silent."""

    def __init__(self, *, hangs: bool = False, message: str = "broken") -> None:
        self._server = None
        if hangs:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
            self.port = self._listener.getsockname()[1]
            return

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = json.dumps({"error_code": "INTERNAL_ERROR", "message": message}).encode()
                self.send_response(500)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PATCH = do_PUT = _answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Take it away."""
        if self._server is None:
            self._listener.close()
        else:
            self._server.shutdown()
            self._server.server_close()
