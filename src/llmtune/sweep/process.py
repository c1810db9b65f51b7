"""One job as a process: started, watched, stopped, and its end recorded truthfully."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from llmtune.runs.status import RunState, RunStatusFile
from llmtune.signals import kill_all, started_by
from llmtune.sweep.job import JobOutcome, SweepJob, SweepSettings
from llmtune.tracking.dead_runs import end_run
from llmtune.tracking.mlflow import PARENT_RUN_VARIABLE, SWEEP_VARIABLE


@dataclass(frozen=True)
class _Ended:
    """How a job's process ended."""

    exit_status: int | None
    seconds: float
    timed_out: bool = False
    interrupted: bool = False


def run_job(job: SweepJob, settings: SweepSettings, parent_run_id: str | None) -> tuple[JobOutcome, bool]:
    """Run a job to its end, whatever that is.

    Args:
        job: the job; its output goes to this process's terminal.
        settings: how long it may take.
        parent_run_id: the sweep's MLflow run.

    Returns:
        What became of it, and whether a person or the system interrupted the sweep meanwhile.
    """
    started = time.monotonic()
    environment = {**os.environ, SWEEP_VARIABLE: settings.folder.path.name, **job.env}
    if parent_run_id is not None:
        environment[PARENT_RUN_VARIABLE] = parent_run_id
    try:
        process = subprocess.Popen(job.command, env=environment, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        reason = f"{job.command[0]} could not be started: {error.strerror}"
        end_run(job.folder, "FAILED", reason, None)
        return JobOutcome(job=job, status="FAILED", error=reason), False
    ended = _wait(process, settings, started)
    return _judge(job, ended, settings.tracking_uri), ended.interrupted


def _wait(process: subprocess.Popen[bytes], settings: SweepSettings, started: float) -> _Ended:
    timed_out = interrupted = False
    started_by_job: Sequence[psutil.Process] = []
    try:
        process.wait(settings.job_timeout_seconds)
    except subprocess.TimeoutExpired:
        timed_out = True
        started_by_job = started_by(process)
        interrupted = _stop(process, signal.SIGTERM, settings.stop_grace_seconds)
    except (KeyboardInterrupt, SystemExit):
        interrupted = True
        started_by_job = started_by(process)
        _stop(process, signal.SIGINT, settings.stop_grace_seconds)
    finally:
        _signal_group(process, signal.SIGKILL)  # what the job started and left behind ends with it
        kill_all(started_by_job)  # a run's workers have sessions of their own
        process.wait()
    return _Ended(process.returncode, time.monotonic() - started, timed_out, interrupted)


def _stop(process: subprocess.Popen[bytes], number: signal.Signals, grace_seconds: float) -> bool:
    """Ask the job's whole process group to end, and wait; returns whether a person interrupted the wait.

    The caller kills what is left.
    """
    _signal_group(process, number)
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        return False
    except (KeyboardInterrupt, SystemExit):
        return True
    return False


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _judge(job: SweepJob, ended: _Ended, tracking_uri: str | None) -> JobOutcome:
    """What the job's end amounts to; where the job could not record it, it is recorded here."""
    record = RunStatusFile(job.folder.status_file).read()
    recorded = record.status if record is not None else None
    status, error = _verdict(ended, recorded)
    if record is not None and recorded == status and record.error:
        error = record.error
    if recorded != status:
        end_run(job.folder, status, error, tracking_uri)
    run_id = record.mlflow_run_id if record is not None else None
    return JobOutcome(job=job, status=status, seconds=ended.seconds, error=error, mlflow_run_id=run_id)


def _verdict(ended: _Ended, recorded: RunState | None) -> tuple[RunState, str | None]:
    code = ended.exit_status or 0
    if ended.interrupted and not (recorded == "FINISHED" and code == 0):
        return "KILLED", "interrupted"
    if ended.timed_out:
        return "FAILED", "stopped after sweep.job_timeout_minutes"
    if code == -signal.SIGKILL:
        return "KILLED", "ended by SIGKILL, as where memory runs out: lower train.micro_batch_size"
    if code < 0:
        return "KILLED", f"ended by {signal.Signals(-code).name}"
    if code > 0:
        return ("KILLED" if recorded == "KILLED" else "FAILED"), f"exit status {code}"
    if recorded == "FINISHED":
        return "FINISHED", None
    if recorded in ("FAILED", "KILLED"):
        return recorded, f"recorded as {recorded}"
    return "FAILED", "ended without recording that it finished"
