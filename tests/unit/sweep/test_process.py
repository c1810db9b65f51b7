"""What a job's end amounts to."""

import subprocess
import sys

import psutil
import pytest

from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile
from llmtune.sweep.job import SweepJob, SweepSettings
from llmtune.sweep.process import run_job

pytestmark = pytest.mark.fast

START = """
import os, signal, sys
from pathlib import Path
from llmtune.runs.status import RunStatusFile
file = RunStatusFile(Path(sys.argv[1]) / "status.json")
file.start()
"""


@pytest.mark.parametrize(("end", "status"), [("file.end('FINISHED')", "FINISHED"), ("sys.exit(1)", "KILLED")])
def test_a_job_that_finished_stays_finished_when_its_sweep_is_interrupted(tmp_path, monkeypatch, end, status) -> None:
    folder = RunFolder(tmp_path)
    wait = subprocess.Popen.wait
    interrupts = [KeyboardInterrupt]

    def interrupted_wait(process, timeout=None):
        code = wait(process, timeout)
        if interrupts:
            raise interrupts.pop()
        return code

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted_wait)
    job = SweepJob(name="a", folder=folder, differences={}, command=[sys.executable, "-c", START + end, str(tmp_path)])
    outcome, interrupted = run_job(job, SweepSettings(folder=folder, experiment="tries"), None)
    assert interrupted
    assert outcome.status == RunStatusFile(folder.status_file).read().status == status


def test_workers_in_sessions_of_their_own_end_with_a_job_past_its_limit(tmp_path) -> None:
    sleep = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    code = START + (
        f"import subprocess\nchild = subprocess.Popen({sleep}, start_new_session=True)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "(Path(sys.argv[1]) / 'child').write_text(str(child.pid))\nchild.wait()"
    )
    folder = RunFolder(tmp_path)
    job = SweepJob(name="a", folder=folder, differences={}, command=[sys.executable, "-c", code, str(tmp_path)])
    settings = SweepSettings(folder=folder, experiment="tries", job_timeout_seconds=3.0, stop_grace_seconds=0.2)
    outcome, _ = run_job(job, settings, None)
    assert outcome.status == "FAILED"
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).wait(10) is None
