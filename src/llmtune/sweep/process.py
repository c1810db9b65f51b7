"""One job as a process: started, watched, stopped, and its end recorded truthfully."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmtune.runs.environment import BASE_EVALUATIONS_VARIABLE
from llmtune.runs.status import RunState, RunStatusFile
from llmtune.signals import kill_all, started_by
from llmtune.sweep.job import JobOutcome, SweepJob, SweepSettings
from llmtune.sweep.lifeline import SWEEP_PROCESS_VARIABLE
from llmtune.tracking.dead_runs import end_run
from llmtune.tracking.mlflow import PARENT_RUN_VARIABLE, SWEEP_JOB_VARIABLE, SWEEP_VARIABLE


@dataclass(frozen=True)
class _Ended:
    """How a job's process ended."""

    exit_status: int
    seconds: float
    timed_out: bool
    interrupted: bool


class RunningJob:
    """A job's process, from its start to its end.

    Args:
        job: the job.
        settings: how long it may take.
        environment: environment variables of its own.
        output: file that gets what it writes; None is this process's terminal.

    Raises:
        OSError: it can't be started.
    """

    def __init__(
        self, job: SweepJob, settings: SweepSettings, environment: Mapping[str, str], output: Path | None = None
    ) -> None:
        self.job = job
        self._settings = settings
        self._started = time.monotonic()
        self._timed_out = self._interrupted = False
        self._kill_at: float | None = None
        self._left: Sequence[psutil.Process] = []
        folder = settings.working_folder
        file = output.open("ab") if output is not None else None
        try:
            self._process = subprocess.Popen(
                job.command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT if file is not None else None,
                cwd=folder if folder is not None and folder.is_dir() else None,
                process_group=0,
            )
        finally:
            if file is not None:
                file.close()

    def poll(self) -> JobOutcome | None:
        """What became of the job; None while it runs. One that is past its limit is told to end, and killed later."""
        if self._process.poll() is not None:
            return self._end()
        now, limit = time.monotonic(), self._settings.job_timeout_seconds
        if self._kill_at is not None:
            if now >= self._kill_at:
                self._kill()
        elif limit is not None and now - self._started >= limit:
            self._timed_out = True
            self._ask_to_end(signal.SIGTERM)
        return None

    def interrupt(self) -> None:
        """Ask the job to save and end, since the sweep is interrupted."""
        self._interrupted = True
        if self._kill_at is None:
            self._ask_to_end(signal.SIGINT)

    def hurry(self) -> None:
        """Give the job no more time."""
        self._kill_at = 0.0

    def _ask_to_end(self, number: signal.Signals) -> None:
        """Ask the job's whole process group to end; what is still there after the grace is killed."""
        self._left = started_by(self._process)
        self._kill_at = time.monotonic() + self._settings.stop_grace_seconds
        self._signal_group(number)

    def _kill(self) -> None:
        self._signal_group(signal.SIGKILL)
        kill_all(self._left)  # a run's workers have sessions of their own

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _end(self) -> JobOutcome:
        self._kill()  # what the job started and left behind ends with it
        seconds = time.monotonic() - self._started
        ended = _Ended(self._process.returncode, seconds, self._timed_out, self._interrupted)
        return _judge(self.job, ended, self._settings.tracking_uri)


def job_environment(job: SweepJob, settings: SweepSettings, parent_run_id: str | None) -> dict[str, str]:
    """What tells a job which sweep it belongs to.

    Args:
        job: the job.
        settings: the sweep's.
        parent_run_id: the sweep's MLflow run.
    """
    tags = {f"sweep.{key}": value for key, value in job.differences.items()}
    environment = {
        SWEEP_VARIABLE: settings.folder.path.name,
        SWEEP_JOB_VARIABLE: json.dumps({"name": job.run_name, "tags": tags}),
        SWEEP_PROCESS_VARIABLE: str(os.getpid()),
        BASE_EVALUATIONS_VARIABLE: str(settings.folder.path / "base"),
    }
    if parent_run_id is not None:
        environment[PARENT_RUN_VARIABLE] = parent_run_id
    if settings.tracking_uri is not None and "MLFLOW_TRACKING_URI" not in os.environ:
        environment["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    return {**environment, **job.env}


def not_started(job: SweepJob, error: OSError) -> JobOutcome:
    """The outcome of a job whose process could not be started, which is recorded too."""
    reason = f"{error.filename or job.command[0]} could not be started: {error.strerror}"
    end_run(job.folder, "FAILED", reason, None)
    return JobOutcome(job=job, status="FAILED", seconds=job.earlier_seconds, error=reason)


def _judge(job: SweepJob, ended: _Ended, tracking_uri: str | None) -> JobOutcome:
    """What the job's end amounts to; where the job could not record it, it is recorded here."""
    record = RunStatusFile(job.folder.status_file).read()
    recorded = record.status if record is not None else None
    status, error = _verdict(ended, recorded)
    if record is not None and recorded == status and record.error:
        error = record.error
    if recorded != status:
        end_run(job.folder, status, error, tracking_uri)
    seconds, run_id = job.earlier_seconds + ended.seconds, record.mlflow_run_id if record is not None else None
    timed_out = ended.timed_out and status != "FINISHED"
    return JobOutcome(job=job, status=status, seconds=seconds, error=error, mlflow_run_id=run_id, timed_out=timed_out)


def _verdict(ended: _Ended, recorded: RunState | None) -> tuple[RunState, str | None]:
    code = ended.exit_status
    if recorded == "FINISHED" and code == 0:  # also where it was told to end just then
        return "FINISHED", None
    if ended.interrupted:
        return "KILLED", "interrupted"
    if ended.timed_out:
        return "FAILED", "stopped after sweep.job_timeout_minutes"
    if code == -signal.SIGKILL:
        return "KILLED", "ended by SIGKILL, as where memory runs out: lower train.micro_batch_size"
    if code < 0:
        return "KILLED", f"ended by {signal.Signals(-code).name}"
    if code > 0:
        return ("KILLED" if recorded == "KILLED" else "FAILED"), f"exit status {code}"
    if recorded in ("FAILED", "KILLED"):
        return recorded, f"recorded as {recorded}"
    return "FAILED", "ended without recording that it finished"
