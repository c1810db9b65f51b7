"""What a job's end amounts to."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from llmtune.runs.environment import BASE_EVALUATIONS_VARIABLE
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile
from llmtune.sweep.job import SweepJob, SweepSettings
from llmtune.sweep.lifeline import SWEEP_PROCESS_VARIABLE
from llmtune.sweep.process import RunningJob, _Ended, _verdict, job_environment
from llmtune.tracking.mlflow import PARENT_RUN_VARIABLE, SWEEP_JOB_VARIABLE, SWEEP_VARIABLE

pytestmark = pytest.mark.fast

START = """
import os, signal, sys
from pathlib import Path
from llmtune.runs.status import RunStatusFile
file = RunStatusFile(Path(sys.argv[1]) / "status.json")
file.start()
"""


def _started(tmp_path, code, **settings) -> RunningJob:
    folder = RunFolder(tmp_path)
    job = SweepJob(name="a", folder=folder, differences={}, command=[sys.executable, "-c", code, str(tmp_path)])
    return RunningJob(job, SweepSettings(folder=folder, experiment="tries", **settings), {})


def _outcome(running: RunningJob):
    while (outcome := running.poll()) is None:
        time.sleep(0.02)
    return outcome


@pytest.mark.parametrize(("end", "status"), [("file.end('FINISHED')", "FINISHED"), ("sys.exit(1)", "KILLED")])
def test_a_job_that_finished_stays_finished_when_its_sweep_is_interrupted(tmp_path, end, status) -> None:
    running = _started(tmp_path, START + end)
    running._process.wait()
    running.interrupt()
    assert _outcome(running).status == RunStatusFile(tmp_path / "status.json").read().status == status


def test_a_job_that_finished_while_it_was_told_to_end_stays_finished(tmp_path) -> None:
    running = _started(tmp_path, "import time\n" + START + "file.end('FINISHED')", job_timeout_seconds=0.0)
    running._ask_to_end = lambda number: None  # the signal comes too late to end it
    outcome = _outcome(running)
    assert running._timed_out
    assert (outcome.status, outcome.error) == ("FINISHED", None)
    assert RunStatusFile(tmp_path / "status.json").read().status == "FINISHED"


@pytest.mark.parametrize("recorded", ["RUNNING", None])
def test_one_that_was_told_to_end_and_ended_without_finishing_is_past_its_limit(recorded) -> None:
    found = _verdict(_Ended(0, 10.0, timed_out=True, interrupted=False), recorded)
    assert found == ("FAILED", "stopped after sweep.job_timeout_minutes")


def test_workers_in_sessions_of_their_own_end_with_a_job_past_its_limit(tmp_path) -> None:
    sleep = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    code = START + (
        f"import subprocess\nchild = subprocess.Popen({sleep}, start_new_session=True)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "(Path(sys.argv[1]) / 'child').write_text(str(child.pid))\nchild.wait()"
    )
    outcome = _outcome(_started(tmp_path, code, job_timeout_seconds=3.0, stop_grace_seconds=0.2))
    assert (outcome.status, outcome.error) == ("FAILED", "stopped after sweep.job_timeout_minutes")
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).wait(10) is None


def test_a_job_is_told_its_sweep(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sweep, run = RunFolder(tmp_path / "20260101-000000-sweep-abcd"), RunFolder(tmp_path / "20260101-000000-lora-m-1a2b")
    job = SweepJob(name="seed=1", folder=run, differences={"seed": "1"}, command=[], env={"MORE": "1"})
    told = job_environment(job, SweepSettings(folder=sweep, experiment="e", tracking_uri="sqlite:////x.db"), "ff")
    assert told.pop(BASE_EVALUATIONS_VARIABLE) == str(sweep.path / "base")
    assert json.loads(told.pop(SWEEP_JOB_VARIABLE)) == {"name": "seed=1 1a2b", "tags": {"sweep.seed": "1"}}
    assert told == {
        SWEEP_VARIABLE: sweep.path.name,
        PARENT_RUN_VARIABLE: "ff",
        SWEEP_PROCESS_VARIABLE: str(os.getpid()),
        "MLFLOW_TRACKING_URI": "sqlite:////x.db",
        "MORE": "1",
    }


def test_a_job_ends_in_order_once_its_sweep_is_gone(tmp_path) -> None:
    """Killed with SIGKILL, the sweep can tell its job nothing."""
    job = (
        "import signal, sys, time; from pathlib import Path\n"
        "from llmtune.sweep.lifeline import end_with_the_sweep\n"
        "def save(number, frame):\n    Path('saved').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\nend_with_the_sweep()\nPath('ready').touch()\ntime.sleep(60)"
    )
    sweep = (
        "import os, subprocess, sys, time; from pathlib import Path\n"
        "from llmtune.sweep.lifeline import SWEEP_PROCESS_VARIABLE\n"
        "environment = {**os.environ, SWEEP_PROCESS_VARIABLE: str(os.getpid())}\n"
        f"job = subprocess.Popen([sys.executable, '-c', {job!r}], env=environment)\n"
        "Path('pid').write_text(str(job.pid))\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", sweep], cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.6)
    assert not (tmp_path / "saved").exists()
    process.kill()
    process.wait()
    while not (tmp_path / "saved").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "saved").exists()
