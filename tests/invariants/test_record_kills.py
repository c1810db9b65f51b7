"""Runs that are killed: what the record says of them, and that one which goes on sends nothing twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from record import TRAIN, Trained, history, steps_by_metric, twice, wait_for

from llmtune.commands import runs
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.manifest import Manifest
from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile
from llmtune.signals import INTERRUPTED
from llmtune.tracking.client import MlflowClient
from llmtune.tracking.dead_runs import mark_dead_runs
from llmtune.tracking.entry import KEPT_FILE
from llmtune.tracking.kept_file import KeptFile

LONG = ("data.num_examples=160", "train.num_epochs=6", "train.checkpoint_every_steps=10")
NUM_STEPS = 120


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working folder with the default store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def _start(work: Path, *words: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    command = [sys.executable, "-m", "llmtune", *words]
    return subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.DEVNULL)


def _num_steps() -> int:
    """Steps that the newest run has recorded."""
    files = sorted(Path("runs").glob("*/metrics.jsonl"))
    return sum(b"train/loss" in line for line in files[-1].read_bytes().splitlines()) if files else 0


def _killed(work: Path, num_steps: int, *words: str) -> RunFolder:
    """A run that was killed once it had recorded so many steps."""
    process = _start(work, *TRAIN, *words)
    try:
        wait_for(lambda: _num_steps() >= num_steps or process.poll() is not None, 120)
    finally:
        process.kill()
    assert process.wait(30) == -signal.SIGKILL
    return list_runs(Path("runs"))[0].folder


def _mlflow_run(work: Path, folder: RunFolder):
    record = RunStatusFile(folder.status_file).read()
    client = MlflowClient(f"sqlite:///{work}/mlflow.db")
    return client, client.get_run(record.mlflow_run_id)


def _check_each_step_once(work: Path, folder: RunFolder) -> None:
    """Each metric's steps in the store are those in the folder, once, with the same losses."""
    client, run = _mlflow_run(work, folder)
    losses = MetricsLog(folder.metrics_file).losses("train/loss")
    assert len(losses) == NUM_STEPS
    assert history(client, run.info.run_id) == losses
    for key, steps in steps_by_metric(folder).items():
        sent = [step for step, _ in history(client, run.info.run_id, key)]
        assert twice(sent) == [], key
        # a process doesn't count its first steps' speed, so that the folder lacks those that it made again
        assert sent == steps or (key == "train/tokens_per_second_per_device" and set(sent) >= set(steps)), key


def test_a_run_killed_midway_goes_on_and_no_step_is_sent_twice(work, capsys):
    from llmtune.cli import run

    folder = _killed(work, 25, *LONG)
    _, before = _mlflow_run(work, folder)
    assert before.info.status == "RUNNING"
    assert runs.run([]) == 0  # the next command, whichever
    _, marked = _mlflow_run(work, folder)
    record = RunStatusFile(folder.status_file).read()
    assert (marked.info.status, record.status) == ("KILLED", "KILLED")
    assert marked.info.end_time / 1000 == pytest.approx(folder.metrics_file.stat().st_mtime, abs=5)
    process = _start(work, "train", f"run={folder.path}")  # it goes on, and is killed again, unmarked
    wait_for(lambda: _num_steps() >= 50 or process.poll() is not None, 120)
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    assert run(["train", f"run={folder.path}", "tracking.ui_port=5999"]) == 0
    _check_each_step_once(work, folder)
    _, ended = _mlflow_run(work, folder)
    assert ended.info.run_id == before.info.run_id
    assert ended.info.status == "FINISHED"
    assert not (folder.path / KEPT_FILE).exists()


@pytest.mark.slow
def test_control_where_points_are_not_compared_steps_are_sent_twice(work, monkeypatch):
    from llmtune.cli import run

    folder = _killed(work, 25, *LONG)
    monkeypatch.setattr("llmtune.tracking.sending._is_new", lambda key, point, last: True)
    assert run(["train", f"run={folder.path}"]) == 0
    client, sent = _mlflow_run(work, folder)
    assert twice([step for step, _ in history(client, sent.info.run_id)])


def test_a_sweep_and_its_job_that_are_killed_are_both_marked_by_the_next_command(work):
    sweep = _start(work, *TRAIN, *LONG, "-m", "seed=1,2")
    wait_for(lambda: _num_steps() >= 5 or sweep.poll() is not None, 120)
    (job,) = [listed for listed in list_runs(Path("runs")) if listed.record.status == "RUNNING"]
    sweep.kill()
    sweep.wait(30)
    os.kill(job.record.pid, signal.SIGKILL)
    wait_for(job.record.process_is_gone)
    assert runs.run([]) == 0
    (parent,) = map(RunFolder, Path("runs").glob("*-sweep-*"))
    for folder in (parent, job.folder):
        _, run = _mlflow_run(work, folder)
        record = RunStatusFile(folder.status_file).read()
        assert (run.info.status, record.status, record.error) == ("KILLED", "KILLED", "the process is gone")
        assert run.data.tags["run_folder"] == str(folder.path.absolute())
    _, child = _mlflow_run(work, job.folder)
    assert child.data.tags["mlflow.parentRunId"] == RunStatusFile(parent.status_file).read().mlflow_run_id


@pytest.fixture
def dead(work):
    """The folder of a run of a process that is gone, its store away so far."""
    folder = RunFolder(work / "runs" / "20260101-000000-lora-tiny-0123")
    folder.path.mkdir(parents=True)
    status = RunStatusFile(folder.status_file)
    status.start(None, f"sqlite:///{work}/mlflow.db")
    content = json.loads(folder.status_file.read_text())
    folder.status_file.write_text(json.dumps({**content, "pid": 2**22 + 1}))
    run = {"experiment": "tries", "name": folder.path.name, "tags": {"run_folder": str(folder.path)}}
    KeptFile(folder.path / KEPT_FILE).begin(run)
    return folder


def test_a_run_killed_while_its_store_is_away_is_marked_there_once_it_is_back(work, dead):
    (work / "mlflow.db").mkdir()
    assert mark_dead_runs(work / "runs", None) == [dead]
    assert RunStatusFile(dead.status_file).read().status == "KILLED"
    assert mark_dead_runs(work / "runs", None) == []
    (work / "mlflow.db").rmdir()
    assert mark_dead_runs(work / "runs", None) == []
    _, run = _mlflow_run(work, dead)
    assert (run.info.status, run.info.run_name) == ("KILLED", dead.path.name)
    assert not (dead.path / KEPT_FILE).exists()


_IMPORTS = (
    "import sys; from llmtune.cli import run; status = run({words}); print('mlflow' in sys.modules); sys.exit(status)"
)


@pytest.mark.parametrize("command", [["runs"], ["runs", "--json"]])
def test_the_list_of_runs_imports_mlflow_only_to_mark_one_that_is_dead(work, dead, command):
    def imports_mlflow() -> bool:
        code = [sys.executable, "-c", _IMPORTS.format(words=command)]
        done = subprocess.run(code, cwd=work, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.splitlines()[-1] == "True"

    assert imports_mlflow() == (command == ["runs"])
    assert RunStatusFile(dead.status_file).read().status == "KILLED"
    mark_dead_runs(work / "runs", None)
    assert not imports_mlflow()


def test_pages_and_text_mark_a_run_that_is_dead(work, dead, monkeypatch):
    from llmtune.cli import run

    monkeypatch.setattr("llmtune.tracking.ui.serve_ui", lambda *arguments: 0)
    assert run(["ui"]) == 0
    _, marked = _mlflow_run(work, dead)
    assert marked.info.status == "KILLED"
    again = json.loads(dead.status_file.read_text())
    dead.status_file.write_text(json.dumps({**again, "status": "RUNNING"}))
    words = [word for word in TRAIN if word.startswith(("model=", "hardware"))]
    assert run(["generate", *words, "generate.prompt=one two", "generate.max_new_tokens=2"]) == 0
    assert RunStatusFile(dead.status_file).read().status == "KILLED"


@pytest.fixture
def measured_again(work, monkeypatch):
    """Measures a run, stops between figures and manifest, and measures it again; each figure's points in the store."""
    from llmtune.cli import run

    def go():
        assert run([*TRAIN, "data.num_examples=16", "evaluate.num_samples=0"]) == 0
        folder = list_runs(Path("runs"))[0].folder
        with monkeypatch.context() as stopped:
            stopped.setattr("llmtune.runs.manifest.Manifest.finish_stage", _interrupt)
            assert run(["evaluate", f"run={folder.path}"]) == INTERRUPTED
        assert run(["evaluate", f"run={folder.path}"]) == 0
        client, found = _mlflow_run(work, folder)
        results = Manifest(folder.manifest_file).stage("evaluate")
        figures = {f"evaluate/{name}": value for name, value in results.items()}
        shown = {name: value for name, value in found.data.metrics.items() if name in figures}
        assert shown == {name: figures[name] for name in shown}
        return {name: history(client, found.info.run_id, name) for name in shown}

    return go


def _interrupt(*_):
    raise KeyboardInterrupt


def test_figures_measured_again_are_there_once_but_for_a_speed_that_differs(measured_again):
    points = measured_again()
    assert len(points) > 4
    speed = points.pop("evaluate/tokens_per_second")
    assert len(speed) == len(set(speed))
    assert {name: len(one) for name, one in points.items()} == dict.fromkeys(points, 1)


@pytest.mark.slow
def test_control_figures_that_are_not_compared_are_there_twice(measured_again, monkeypatch):
    monkeypatch.setattr("llmtune.tracking.sending._is_new", lambda key, point, last: True)
    assert len(measured_again()["evaluate/loss"]) == 2


@pytest.mark.slow
def test_two_runs_started_at_once_share_a_fresh_store(work):
    started = [_start(work, *TRAIN, "data.num_examples=16", f"cache_dir={work}/cache{number}") for number in (1, 2)]
    assert [process.wait(200) for process in started] == [0, 0]
    client = MlflowClient(f"sqlite:///{work}/mlflow.db")
    experiment = client.get_experiment_by_name("llmtune").experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FINISHED"] * 2
    for listed in list_runs(Path("runs")):
        _, run = _mlflow_run(work, listed.folder)
        assert [step for step, _ in history(client, run.info.run_id)] == Trained(listed.folder).sent_steps
    assert not list((work / "runs").glob(f"*/{KEPT_FILE}"))
