"""A run's status on disk: what became of it, and whether the process that ran it is still there."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil

from llmtune.credentials import without_credentials
from llmtune.errors import RunError
from llmtune.logs import warn
from llmtune.process_identity import ProcessIdentity
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import as_json, write_json

RunState = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
PROCESS_GONE = "the process is gone"
"""Why a run is KILLED that could not say so itself."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run's status file says."""

    status: RunState
    """RUNNING until the run's end is recorded."""
    pid: int
    """Process that ran it, or runs it."""
    process_started: float
    """When that process began, seconds since the epoch; tells it from a later one with the same number."""
    host: str
    """Machine of the process."""
    started_at: str
    """Start of the run, ISO 8601, UTC."""
    ended_at: str | None = None
    """End of the run, ISO 8601, UTC; null while it runs."""
    mlflow_run_id: str | None = None
    """The MLflow run; null where nothing is tracked."""
    tracking_uri: str | None = None
    """The MLflow store, without credentials."""
    error: str | None = None
    """One line that says why the run failed."""

    @property
    def process(self) -> ProcessIdentity:
        """The process that ran it, or runs it."""
        return ProcessIdentity(self.host, self.pid, self.process_started)

    def process_is_gone(self) -> bool:
        """Whether the process ended. False for a process of another machine, which can't be seen from here."""
        return self.process.is_gone()


class RunStatusFile:
    """A run's `status.json`.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> RunRecord | None:
        """What the file says; None where there is none, or none that can be read."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            known = {field.name for field in fields(RunRecord)}
            return RunRecord(**{name: value for name, value in content.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def start(self, mlflow_run_id: str | None = None, tracking_uri: str | None = None) -> RunRecord:
        """Record that this process runs the run now; a run that goes on keeps its first start time."""
        before, process = self.read(), ProcessIdentity.own()
        record = RunRecord(
            status="RUNNING",
            pid=process.pid,
            process_started=process.started,
            host=process.host,
            started_at=before.started_at if before else _now(),
            mlflow_run_id=mlflow_run_id,
            tracking_uri=without_credentials(tracking_uri) if tracking_uri else None,
        )
        write_json(self._path, asdict(record))
        return record

    def start_anew(self) -> RunRecord:
        """Record that this process runs the run now, in the MLflow run that it had."""
        before = self.read()
        return self.start(before.mlflow_run_id, before.tracking_uri) if before else self.start()

    def end(self, status: RunState, error: str | None = None, at: datetime | None = None) -> None:
        """Record how the run ended.

        Args:
            status: how it ended.
            error: why it failed; its first line is kept.
            at: when it ended; None is now.
        """
        record = self.read() or self.start()
        line = without_credentials(error.strip().splitlines()[0]) if error and error.strip() else None
        ended_at = at.isoformat(timespec="microseconds") if at else _now()
        content = asdict(replace(record, status=status, ended_at=ended_at, error=line))
        try:
            write_json(self._path, content)
        except OSError:  # a full disk has no room for another file, but this one has its block
            with self._path.open("r+", encoding="utf-8") as file:
                file.write(as_json(content))
                file.truncate()

    def link(self, mlflow_run_id: str) -> None:
        """Name the MLflow run, which a store that was away gave late."""
        record = self.read()
        if record is not None and record.mlflow_run_id != mlflow_run_id:
            write_json(self._path, asdict(replace(record, mlflow_run_id=mlflow_run_id)))


def status_files(runs_dir: Path) -> Iterator[Path]:
    """The status files of every run and sweep in `runs_dir`, and of the runs inside a sweep's folder."""
    yield from runs_dir.glob("*/status.json")
    yield from runs_dir.glob("*/*/status.json")


def find_dead_runs(runs_dir: Path) -> list[RunFolder]:
    """The folders of runs that are recorded as RUNNING by a process of this machine that is gone."""
    dead = []
    for path in status_files(runs_dir):
        record = RunStatusFile(path).read()
        if record is not None and record.status == "RUNNING" and record.process_is_gone():
            dead.append(RunFolder(path.parent))
    return dead


def last_sign_of_life(folder: RunFolder) -> datetime:
    """When a run last wrote its status, metrics or log, UTC; for one that was killed about when it ended."""
    files = (folder.status_file, folder.metrics_file, folder.log_file)
    return datetime.fromtimestamp(max(file.stat().st_mtime for file in files if file.exists()), UTC)


def check_not_running(folder: RunFolder) -> None:
    """Return unless another process of this machine is at work on the run.

    This process and those that started it don't count, nor does one of another machine, which can't be seen.

    Raises:
        RunError: one is.
    """
    record = RunStatusFile(folder.status_file).read()
    if record is None or record.status != "RUNNING" or not record.process.is_near or record.process_is_gone():
        return
    if record.pid not in {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}:
        raise RunError(f"{folder.path} is still running as process {record.pid}; wait for its end, or stop it first")


@contextmanager
def at_work(folder: RunFolder) -> Iterator[None]:
    """Within it no other process gets to work on the run; the system ends this with the process, however that ends.

    Where the file system knows no locks, as some of a network do, the status file alone tells.

    Raises:
        RunError: another process is at work on the run.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock_file.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            check_not_running(folder)
            raise RunError(
                f"{folder.path}: another process is at work on the run; wait for its end, or stop it first"
            ) from None
        except OSError as error:
            warn(f"{folder.lock_file} can't be locked ({error.strerror}); start no second command on the run meanwhile")
        check_not_running(folder)
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
