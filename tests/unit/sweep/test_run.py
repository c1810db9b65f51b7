import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from llmtune.errors import RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile
from llmtune.sweep.job import SweepJob, SweepSettings
from llmtune.sweep.known_runs import known_runs
from llmtune.sweep.run import run_sweep
from llmtune.tracking.client import MlflowClient

TRACKED_START = """
import os, sys, time, signal
from pathlib import Path
from llmtune.runs.status import RunStatusFile
from llmtune.tracking.mlflow import PARENT_RUN_VARIABLE, MlflowTracker, TrackedRun
folder, uri = Path(sys.argv[1]), sys.argv[2]
run = TrackedRun(experiment="tries", name=folder.name, parent_run_id=os.environ[PARENT_RUN_VARIABLE])
tracker = MlflowTracker(uri, run, folder)
file = RunStatusFile(folder / "status.json")
file.start(tracker.run_id, uri)
"""
PLAIN_START = """
import os, sys, time, signal
from pathlib import Path
from llmtune.runs.status import RunStatusFile
folder = Path(sys.argv[1])
file = RunStatusFile(folder / "status.json")
file.start()
"""
FINISH = "file.end('FINISHED')"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr("llmtune.sweep.parent.say", lines.append)
    monkeypatch.setattr("llmtune.sweep.run.say", lines.append)
    monkeypatch.setattr("llmtune.sweep.schedule.say", lines.append)
    monkeypatch.setattr("llmtune.sweep.run.fail", lines.append)
    return lines


def _job(tmp_path, name, code, *arguments):
    folder = RunFolder(tmp_path / "sweep" / name)
    folder.path.mkdir(parents=True)
    command = [sys.executable, "-c", code, str(folder.path), *arguments]
    return SweepJob(name=name, folder=folder, differences={"method": name}, command=command)


def _settings(tmp_path, uri=None, **more):
    return SweepSettings(folder=RunFolder(tmp_path / "sweep"), experiment="tries", tracking_uri=uri, **more)


def _statuses(tmp_path):
    return {entry["job"]: entry["status"] for entry in json.loads((tmp_path / "sweep" / "summary.json").read_text())}


def test_all_finish_and_the_parent_too(tmp_path, uri, said):
    jobs = [
        _job(tmp_path, name, TRACKED_START + "tracker.close('FINISHED');" + FINISH, uri) for name in ("lora", "full")
    ]
    assert run_sweep(jobs, _settings(tmp_path, uri)) == 0
    client = MlflowClient(uri)
    parent_id = RunStatusFile(tmp_path / "sweep" / "status.json").read().mlflow_run_id
    parent = client.get_run(parent_id)
    children = client.search_runs(parent.info.experiment_id, f"tags.mlflow.parentRunId = '{parent_id}'")
    assert parent.info.status == "FINISHED"
    assert sorted((run.info.run_name, run.info.status) for run in children) == [
        ("full", "FINISHED"),
        ("lora", "FINISHED"),
    ]
    assert "| lora | FINISHED |" in parent.data.tags["mlflow.note.content"]
    (link,) = [line for line in said if line.startswith("side by side: ")]
    assert all(run.info.run_id in unquote(link) for run in children)
    ids = [run.info.run_id for run in children]
    assert known_runs(uri, ["f" * 32, *ids]).run_ids == tuple(ids)
    assert known_runs(uri, ids).experiment_id == parent.info.experiment_id
    assert known_runs(f"sqlite:///{tmp_path}/other.db", ids).run_ids == ()
    assert not (tmp_path / "other.db").exists()


def test_a_killed_job_is_marked_in_the_store_and_fails_the_parent_until_it_is_finished(tmp_path, uri, said):
    jobs = [_job(tmp_path, "killed", TRACKED_START + KILL, uri)]
    assert run_sweep(jobs, _settings(tmp_path, uri)) == 1
    record = RunStatusFile(jobs[0].folder.status_file).read()
    assert (record.status, record.error) == (
        "KILLED",
        "ended by SIGKILL, as where memory runs out: lower train.micro_batch_size",
    )
    client = MlflowClient(uri)
    assert client.get_run(record.mlflow_run_id).info.status == "KILLED"
    parent = RunStatusFile(tmp_path / "sweep" / "status.json").read()
    assert (parent.status, parent.error) == ("FAILED", "1 of 1 jobs did not finish")
    assert client.get_run(parent.mlflow_run_id).info.status == "FAILED"
    going_on = replace(jobs[0], command=[sys.executable, "-c", PLAIN_START + FINISH, str(jobs[0].folder.path)])
    assert run_sweep([going_on], _settings(tmp_path, uri)) == 0
    assert RunStatusFile(tmp_path / "sweep" / "status.json").read().mlflow_run_id == parent.mlflow_run_id
    assert client.get_run(parent.mlflow_run_id).info.status == "FINISHED"
    assert len(client.search_runs([client.get_run(parent.mlflow_run_id).info.experiment_id])) == 2


@pytest.mark.fast
def test_all_is_recorded_before_the_table_is_drawn(tmp_path, said, monkeypatch):
    def draw(*arguments):
        raise ValueError("no terminal")

    monkeypatch.setattr("llmtune.sweep.run.print_table", draw)
    with pytest.raises(ValueError, match="no terminal"):
        run_sweep([_job(tmp_path, "finishes", PLAIN_START + FINISH)], _settings(tmp_path))
    assert _statuses(tmp_path) == {"finishes": "FINISHED"}
    assert RunStatusFile(tmp_path / "sweep" / "status.json").read().status == "FINISHED"


@pytest.mark.fast
def test_where_the_comparison_is_and_how_to_make_it_again_is_said(tmp_path, said, monkeypatch):
    compared = (object(), SimpleNamespace(page=tmp_path / "page.html", all=()))
    monkeypatch.setattr("llmtune.sweep.run.compare_jobs", lambda outcomes, settings: compared)
    monkeypatch.setattr("llmtune.sweep.run.description", lambda comparison: "found")
    monkeypatch.setattr("llmtune.sweep.run.show_comparison", lambda comparison: said.append("shown"))
    assert run_sweep([_job(tmp_path, "finishes", PLAIN_START + FINISH)], _settings(tmp_path)) == 0
    at = said.index("shown")
    assert said[at + 1 : at + 3] == [
        f"the comparison: {tmp_path / 'page.html'}",
        f"again at any time: python -m llmtune compare run={tmp_path / 'sweep'}",
    ]


@pytest.mark.fast
def test_no_end_of_a_job_stops_the_others(tmp_path, said):
    ends = {
        "raises": ("raise ValueError('x')", "FAILED", "exit status 1"),
        "exits": ("sys.exit(3)", "FAILED", "exit status 3"),
        "vanishes": ("os._exit(0)", "FAILED", "ended without recording that it finished"),
        "killed": (KILL, "KILLED", "ended by SIGKILL, as where memory runs out: lower train.micro_batch_size"),
        "terminated": ("file.end('KILLED', 'told to stop'); sys.exit(143)", "KILLED", "told to stop"),
        "finishes_but_crashes": (FINISH + "; os._exit(7)", "FAILED", "exit status 7"),
        "finishes": (FINISH, "FINISHED", None),
    }
    jobs = [_job(tmp_path, name, PLAIN_START + code) for name, (code, _, _) in ends.items()]
    nowhere = SweepJob(
        name="nowhere", folder=RunFolder(tmp_path / "sweep" / "no"), differences={}, command=["/no/such"]
    )
    assert run_sweep([nowhere, *jobs], _settings(tmp_path)) == 1
    assert _statuses(tmp_path) == {"nowhere": "FAILED", **{name: status for name, (_, status, _) in ends.items()}}
    for job in jobs:
        record = RunStatusFile(job.folder.status_file).read()
        assert (record.status, record.error) == ends[job.name][1:], job.name
    assert any(
        line.startswith(
            "killed KILLED: ended by SIGKILL, as where memory runs out: lower train.micro_batch_size (log: "
        )
        for line in said
    )
    assert not any(line.startswith("finishes FINISHED") for line in said)


@pytest.mark.fast
def test_a_job_past_its_limit_is_ended_with_all_that_it_started(tmp_path, said):
    stubborn = PLAIN_START + (
        "import subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "(folder / 'child').write_text(str(child.pid))\n"
        "time.sleep(60)"
    )
    jobs = [_job(tmp_path, "hangs", stubborn), _job(tmp_path, "finishes", PLAIN_START + FINISH)]
    started = time.monotonic()
    assert run_sweep(jobs, _settings(tmp_path, job_timeout_seconds=1.5, stop_grace_seconds=0.3)) == 1
    assert time.monotonic() - started < 20
    assert _statuses(tmp_path) == {"hangs": "FAILED", "finishes": "FINISHED"}
    assert RunStatusFile(jobs[0].folder.status_file).read().error == "stopped after sweep.job_timeout_minutes"
    child = int((jobs[0].folder.path / "child").read_text())
    assert _is_gone(child)
    to_finish = f"to finish it: python -m llmtune -m run={tmp_path / 'sweep'}"
    assert f"{to_finish} sweep.job_timeout_minutes=0.05" in said  # twice the 1.5 s that were too few
    failing = _job(tmp_path, "fails", "raise ValueError")
    assert run_sweep([failing], _settings(tmp_path, job_timeout_seconds=60.0)) == 1
    assert to_finish in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_jobs_and_the_sweep(tmp_path, number):
    waits = PLAIN_START + "(folder / 'ready').touch()\ntime.sleep(60)"
    jobs = [_job(tmp_path, name, waits) for name in ("waits", "beside")]
    jobs.append(_job(tmp_path, "never", PLAIN_START + FINISH))
    sweep = (
        "import sys; from pathlib import Path; from llmtune.runs.layout import RunFolder\n"
        "from llmtune.sweep.job import SweepJob, SweepSettings; from llmtune.sweep.run import run_sweep\n"
        f"jobs = [SweepJob(name=n, folder=RunFolder(Path(p)), differences={{}}, command=c) for n, p, c in "
        f"{[(job.name, str(job.folder.path), list(job.command)) for job in jobs]!r}]\n"
        f"folder = RunFolder(Path({str(tmp_path / 'sweep')!r}))\n"
        "settings = SweepSettings(folder=folder, experiment='tries', num_parallel=2)\n"
        "try:\n    run_sweep(jobs, settings)\nexcept KeyboardInterrupt:\n    sys.exit(130)"
    )
    process = subprocess.Popen([sys.executable, "-c", sweep], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for job in jobs[:2]:
        _wait_for(job.folder.path / "ready")
    process.send_signal(number)
    assert process.wait(30) == 130
    assert _statuses(tmp_path) == {"waits": "KILLED", "beside": "KILLED", "never": "NOT STARTED"}
    assert RunStatusFile(tmp_path / "sweep" / "status.json").read().status == "KILLED"
    for job in jobs[:2]:
        record = RunStatusFile(job.folder.status_file).read()
        assert (record.status, record.error) == ("KILLED", "interrupted")
        assert _is_gone(record.pid)
    assert not jobs[2].folder.status_file.exists()


TOGETHER = """
(folder / "device").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
deadline = time.monotonic() + 20
while len(list(folder.parent.glob("*/device"))) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
print("wrote this")
"""


@pytest.mark.fast
def test_two_run_at_once_on_a_device_each_and_one_that_fails_frees_its_own(tmp_path, said, monkeypatch):
    monkeypatch.setattr("llmtune.sweep.schedule.visible_gpus", lambda: ("3", "GPU-ab"))
    ends = {"fails": "sys.exit(3)", "finishes": "time.sleep(1.5);" + FINISH, "next": FINISH, "last": FINISH}
    jobs = [_job(tmp_path, name, PLAIN_START + TOGETHER + end) for name, end in ends.items()]
    assert run_sweep(jobs, _settings(tmp_path)) == 1
    assert _statuses(tmp_path) == {"fails": "FAILED", "finishes": "FINISHED", "next": "FINISHED", "last": "FINISHED"}
    devices = [(job.folder.path / "device").read_text() for job in jobs]
    assert devices == ["3", "GPU-ab", "3", "3"]
    assert [job.folder.output_file.read_text() for job in jobs] == ["wrote this\n"] * 4
    assert f"job 2 of 4 on GPU GPU-ab: finishes ({jobs[1].folder.output_file})" in said
    order = [name for line in said for name in ends if line.startswith(f"job {name}: ")]
    assert order.index("fails") < order.index("next") < order.index("finishes")


@pytest.mark.fast
def test_one_at_a_time_writes_to_the_terminal(tmp_path, said, capfd):
    jobs = [_job(tmp_path, name, PLAIN_START + "print('here')\n" + FINISH) for name in ("first", "second")]
    assert run_sweep(jobs, _settings(tmp_path)) == 0
    assert capfd.readouterr().out.count("here\n") == 2
    assert not jobs[0].folder.output_file.exists()


@pytest.mark.fast
def test_a_sweep_that_another_process_works_on_is_left_alone(tmp_path, said):
    job = _job(tmp_path, "finishes", PLAIN_START + FINISH)
    held = (
        "import sys, time; from pathlib import Path; from llmtune.runs.layout import RunFolder\n"
        "from llmtune.runs.status import at_work\n"
        f"with at_work(RunFolder(Path({str(tmp_path / 'sweep')!r}))):\n    Path('held').touch(); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", held], cwd=tmp_path)
    _wait_for(tmp_path / "held")
    try:
        with pytest.raises(RunError, match="another process is at work"):
            run_sweep([job], _settings(tmp_path))
    finally:
        other.kill()
        other.wait()
    assert not job.folder.status_file.exists()
    assert run_sweep([job], _settings(tmp_path)) == 0


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False
