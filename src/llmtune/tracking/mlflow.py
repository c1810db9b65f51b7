"""The tracker that records in MLflow, by run id and without MLflow's global state."""

import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llmtune.logs import say, warn
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile, without_credentials
from llmtune.tracking.entry import Entry, TrackedRun, metrics_entry
from llmtune.tracking.entry_queue import EntryQueue
from llmtune.tracking.kept_file import KeptFile, read_kept
from llmtune.tracking.secrets import mask_secrets
from llmtune.tracking.sending import RunSender, first_line
from llmtune.tracking.system_metrics import SystemMetrics
from llmtune.tracking.tracker import RunStatus

__all__ = [
    "DESCRIPTION_TAG",
    "PARENT_RUN_VARIABLE",
    "SWEEP_JOB_VARIABLE",
    "SWEEP_VARIABLE",
    "MlflowTracker",
    "TrackedRun",
]

SWEEP_VARIABLE = "LLMTUNE_SWEEP"
"""Environment variable that gives a sweep's job the name of the sweep."""
PARENT_RUN_VARIABLE = "LLMTUNE_PARENT_RUN_ID"
"""Environment variable that gives a sweep's job the MLflow run of the sweep, where it is known."""
SWEEP_JOB_VARIABLE = "LLMTUNE_SWEEP_JOB"
"""Environment variable that gives a sweep's job the `name` and the `tags` of its MLflow run, as JSON."""
DESCRIPTION_TAG = "mlflow.note.content"
"""Tag whose text MLflow shows as a run's description, in Markdown."""

_LONGEST_PARAM = 500
_LONGEST_TAG = 8000
_LONGEST_KEY = 250
_OPEN_SECONDS = 1.0
_OPEN_FILE_SECONDS = 30.0
_CLOSE_SECONDS = 2.5


class MlflowTracker:
    """Records a run in MLflow. A store that is away is said once; entries are kept in the run folder and sent later.

    Args:
        uri: absolute tracking URI, from `store.resolve_tracking_uri`.
        run: the MLflow run.
        working_folder: where artifacts go if the store has no place of its own.
        system_metrics: whether to log CPU, memory and GPU use, from the first metric on: MLflow's compare page opens
            with the metric that came first, which is then the loss.

    Raises:
        ConfigError: the experiment was deleted in that store.
    """

    def __init__(self, uri: str, run: TrackedRun, working_folder: Path, *, system_metrics: bool = False) -> None:
        self._uri = uri
        self._away = threading.Event()
        self._wants_system_metrics = system_metrics
        self._system_metrics: SystemMetrics | None = None
        self._queue: EntryQueue | None = None
        run = replace(run, tags={key: without_credentials(text) for key, text in run.tags.items()})
        kept = KeptFile(run.kept_file) if run.kept_file is not None else None
        described, entries = read_kept(kept.path) if kept is not None else ({}, [])
        ids = {name: getattr(run, name) or described.get(name) for name in ("run_id", "sweep", "parent_run_id")}
        self._run = replace(run, **ids, name=described.get("name") or run.name)
        self._sender = RunSender(uri, self._run, working_folder, was_away=bool(described))
        waiting = [entry for entry in entries if entry.kind != "end"]
        queue = EntryQueue(self._send, self._say_away, kept, waiting, describe=self._describe)
        queue.tried.wait(_OPEN_FILE_SECONDS if uri.startswith("sqlite:") else _OPEN_SECONDS)
        if self._sender.problem is not None:
            queue.close(0)
            raise self._sender.problem
        self._queue = queue

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None as long as the store is away."""
        return self._sender.run_id

    @property
    def uri(self) -> str:
        """The store's absolute tracking URI."""
        return self._uri

    @property
    def experiment_id(self) -> str | None:
        """The MLflow experiment's id; None as long as the store is away."""
        return self._sender.experiment_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record the flattened config: secrets masked, values over 500 characters left to the YAML artifact.

        A run that goes on keeps the params that it has: MLflow refuses to change one.
        """
        texts = {_key(key): _param_text(value) for key, value in mask_secrets(params).items()}
        self._put("params", {key: text for key, text in texts.items() if len(text) <= _LONGEST_PARAM})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set searchable tags; a value over 8000 characters is cut."""
        self._put("tags", {_key(key): without_credentials(text)[:_LONGEST_TAG] for key, text in tags.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue metrics (`<stage>/<name>`) at `step`; what the store has already isn't sent again."""
        if self._queue is not None and metrics:
            self._queue.put(metrics_entry({_key(key): value for key, value in metrics.items()}, step))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file, or what a folder holds, below `folder` of the run's artifacts."""
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        num_bytes = sum(file.stat().st_size for file in files)
        self._put("artifact", {"path": str(path.absolute()), "folder": folder, "num_bytes": num_bytes})

    def log_dataset(self, name: str, digest: str, source: str, context: str, num_rows: int) -> None:
        """Record a data set as the run's input; `context` is train, validation or test."""
        content = {"name": name, "digest": digest, "context": context, "num_rows": num_rows}
        self._put("dataset", {**content, "source": without_credentials(source)})

    def close(self, status: RunStatus) -> None:
        """Send what is left and end the run with `status`; what can't be sent within seconds is kept for later."""
        if self._queue is None:
            return
        self._wants_system_metrics = False
        if self._system_metrics is not None:
            self._system_metrics.stop(0.2 if self._away.is_set() else None)
        self._put("end", {"status": status, "timestamp": int(time.time() * 1000)})
        num_unsent, is_kept = self._queue.close(_CLOSE_SECONDS), self._queue.is_kept
        self._queue = None
        self._link()
        store = without_credentials(self._uri)
        if num_unsent and is_kept:
            warn(
                f"{num_unsent} entries did not reach {store}; they are kept in {self._run.kept_file}, and the next "
                "llmtune command sends them once the store is back"
            )
        elif num_unsent:
            warn(f"{num_unsent} entries did not reach {store}, and no file could keep them")
        elif self._away.is_set():
            say(f"the MLflow store {store} is back and has everything")
        self._away.set()  # a request that is still out says no more

    def _put(self, kind: Any, content: Mapping[str, Any]) -> None:
        if self._queue is not None and content:
            self._queue.put(Entry(kind, content))

    def _send(self, entries: Sequence[Entry]) -> None:
        self._sender.send(entries)
        if self._wants_system_metrics and self.run_id and entries and entries[0].kind == "metrics":
            self._wants_system_metrics = False
            self._system_metrics = SystemMetrics(self._uri, self.run_id, resumed=self._sender.goes_on)

    def _describe(self) -> Mapping[str, Any]:
        """The run as the file of kept entries holds it."""
        known = {"run_id": self.run_id or self._run.run_id, "tracking_uri": without_credentials(self._uri)}
        return {**asdict(self._run), "tags": dict(self._run.tags), **known}

    def _link(self) -> None:
        """Name the MLflow run in the status file, where the store came back after it was written."""
        if self._run.kept_file is not None and self.run_id is not None:
            with suppress(OSError):
                RunStatusFile(RunFolder(self._run.kept_file.parent).status_file).link(self.run_id)

    def _say_away(self, error: Exception) -> None:
        if self._away.is_set():
            return
        self._away.set()
        warn(
            f"the MLflow store {without_credentials(self._uri)} can't be written to ({first_line(error)}); the run "
            "goes on and everything is kept in its folder. Start the server, or set tracking.uri="
        )


def _key(key: str) -> str:
    return re.sub(r"[^\w/. :-]", "_", key, flags=re.ASCII)[:_LONGEST_KEY]


def _param_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
