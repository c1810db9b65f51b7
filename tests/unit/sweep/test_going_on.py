"""A sweep that was interrupted is finished: what is done stays, the rest runs in its own folders."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from llmtune.config.data import FilesConfig
from llmtune.config.model import ModelConfig
from llmtune.config.run import RunConfig
from llmtune.config.saved import load_config
from llmtune.config.tracking import TrackingConfig
from llmtune.errors import ConfigError, RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import find_sweep, new_sweep_folder, runs_of_sweep, start_run_folder
from llmtune.runs.manifest import Manifest
from llmtune.runs.status import RunStatusFile
from llmtune.sweep.going_on import _check_store_has, config_of_sweep, finish_sweep
from llmtune.sweep.job import JobOutcome, SweepJob, worker_command
from llmtune.sweep.known_runs import KnownRuns
from llmtune.sweep.plan import SweepPlan, read_plan, write_plan

pytestmark = pytest.mark.fast

WORKER = """
import sys, time
from pathlib import Path
from llmtune.runs.manifest import Manifest
from llmtune.runs.status import RunStatusFile
folder = Path(sys.argv[1])
with (folder / "ran").open("a") as file:
    file.write("once ")
status = RunStatusFile(folder / "status.json")
status.start_anew()
if (folder / "broken").exists():
    sys.exit(3)
Manifest(folder / "manifest.json").finish_stage("train", {"seconds": 1.0})
status.end("FINISHED")
"""


@pytest.fixture(autouse=True)
def workers_are_quick(monkeypatch):
    monkeypatch.setattr(
        "llmtune.sweep.plan.worker_command", lambda folder, stages: [sys.executable, "-c", WORKER, str(folder.path)]
    )


def _config(tmp_path) -> RunConfig:
    model = ModelConfig(name="tiny", source="folder", path=str(tmp_path))
    data, tracking = FilesConfig(path="my.jsonl"), TrackingConfig(backend="none", uri=f"sqlite:///{tmp_path}/mlflow.db")
    return RunConfig(model=model, data=data, tracking=tracking, runs_dir=str(tmp_path / "runs"))


def _sweep(tmp_path, config, num_jobs=4) -> tuple[RunFolder, list[SweepJob]]:
    """A sweep that was planned, and that nobody has run."""
    folder = new_sweep_folder(tmp_path / "runs", datetime(2026, 1, 2, 3, 4, 5))
    jobs = []
    for seed in range(num_jobs):
        run = start_run_folder(config)
        command = worker_command(run, ["train"])
        jobs.append(SweepJob(name=f"seed={seed}", folder=run, differences={"seed": str(seed)}, command=command))
    write_plan(folder, SweepPlan(stages=["train"], working_folder=tmp_path, jobs=jobs))
    return folder, jobs


def _end(job, status, stages=("train",), error=None):
    for stage in stages:
        Manifest(job.folder.manifest_file).finish_stage(stage, {"seconds": 1.0})
    RunStatusFile(job.folder.status_file).end(status, error)


def _runs(jobs) -> list[int]:
    """How often each job was run here."""
    files = [job.folder.path / "ran" for job in jobs]
    return [len(file.read_text().split()) if file.exists() else 0 for file in files]


def test_what_is_finished_stays_and_the_rest_is_run(tmp_path, capsys) -> None:
    config = _config(tmp_path)
    folder, jobs = _sweep(tmp_path, config)
    _end(jobs[0], "FINISHED")
    _end(jobs[1], "KILLED", stages=())
    _end(jobs[2], "FINISHED", stages=())  # by a command of its own, for a stage that isn't the sweep's
    folder.summary_file.write_text(json.dumps([{"folder": str(jobs[0].folder.path), "seconds": 77.7}]))
    assert finish_sweep(folder, config) == 0
    assert _runs(jobs) == [0, 1, 1, 1]
    entries = json.loads(folder.summary_file.read_text())
    assert [entry["status"] for entry in entries] == ["FINISHED"] * 4
    assert [entry["job"] for entry in entries] == [job.name for job in jobs]
    assert entries[0]["seconds"] == 77.7
    assert RunStatusFile(folder.status_file).read().status == "FINISHED"
    assert "1 of 4 jobs are finished, 3 to go" in capsys.readouterr().out


def test_nothing_left_to_do_is_said_and_the_summary_made_again(tmp_path, capsys) -> None:
    config = _config(tmp_path)
    folder, jobs = _sweep(tmp_path, config, num_jobs=2)
    for job in jobs:
        _end(job, "FINISHED")
    assert finish_sweep(folder, config) == 0
    assert "2 of 2 jobs are finished, nothing is left to do" in capsys.readouterr().out
    assert _runs(jobs) == [0, 0]
    assert len(json.loads(folder.summary_file.read_text())) == 2


def test_runs_that_are_gone_or_damaged_are_named_and_the_others_go_on(tmp_path, capsys) -> None:
    config = _config(tmp_path)
    folder, jobs = _sweep(tmp_path, config)
    jobs[0].folder.config_file.unlink()
    jobs[0].folder.path.rmdir()
    jobs[1].folder.config_file.write_text("seed: [1\n")
    (jobs[2].folder.path / "broken").touch()
    assert config_of_sweep(folder)["seed"] == config.seed
    assert finish_sweep(folder, config) == 1
    assert _runs(jobs) == [0, 0, 1, 1]
    errors = [entry["error"] for entry in json.loads(folder.summary_file.read_text())]
    assert errors[0] == f"its run folder {jobs[0].folder.path} is gone"
    assert errors[1].startswith(f"{jobs[1].folder.config_file}:2: isn't YAML")
    assert errors[2:] == ["exit status 3", None]
    assert not jobs[0].folder.path.exists()
    assert RunStatusFile(folder.status_file).read().status == "FAILED"
    assert f"seed=0 FAILED: {errors[0]}" in capsys.readouterr().err


def test_a_typed_store_is_that_of_the_runs_that_are_left(tmp_path) -> None:
    config = _config(tmp_path)
    folder, jobs = _sweep(tmp_path, config, num_jobs=2)
    _end(jobs[0], "FINISHED")
    assert finish_sweep(folder, config, typed_uri="http://127.0.0.1:1") == 0
    uris = [load_config(job.folder.config_file).tracking.uri for job in jobs]
    assert uris == [config.tracking.uri, "http://127.0.0.1:1"]


def test_a_store_without_the_finished_jobs_runs_is_refused(tmp_path, monkeypatch) -> None:
    """Their MLflow runs would be in one store and the others in another, and the sweep's in neither whole."""
    config = replace(_config(tmp_path), tracking=TrackingConfig(uri=f"sqlite:///{tmp_path}/old.db"))
    folder, jobs = _sweep(tmp_path, config, num_jobs=3)
    old, new = (f"sqlite:///{tmp_path}/{name}.db" for name in ("old", "new"))
    RunStatusFile(jobs[0].folder.status_file).start("a" * 32, old)
    _end(jobs[0], "FINISHED")
    with pytest.raises(ConfigError, match=f"tracking.uri={new}: 1 finished job is recorded in {old}; leave it out"):
        finish_sweep(folder, config, typed_uri=new)
    assert _runs(jobs) == [0, 0, 0]
    assert {load_config(job.folder.config_file).tracking.uri for job in jobs} == {old}
    # The same store at another address knows the runs.
    monkeypatch.setattr("llmtune.sweep.going_on.known_runs", lambda uri, run_ids: KnownRuns(tuple(run_ids), "1"))
    _check_store_has([JobOutcome(job=jobs[0], status="FINISHED")], new)


def test_what_a_copied_sweep_does_it_does_to_its_own_runs(tmp_path) -> None:
    config = _config(tmp_path)
    folder, jobs = _sweep(tmp_path, config, num_jobs=2)
    shutil.copytree(tmp_path / "runs", tmp_path / "copied")
    copied = RunFolder(tmp_path / "copied" / folder.path.name)
    assert [job.folder.path.parent for job in read_plan(copied).jobs] == [tmp_path / "copied"] * 2
    assert [path.parent for path in runs_of_sweep(copied.path)] == [tmp_path / "copied"] * 2
    assert finish_sweep(copied, config) == 0
    assert _runs(jobs) == [0, 0]
    assert _runs(read_plan(copied).jobs) == [1, 1]


def test_a_job_that_still_runs_is_refused(tmp_path) -> None:
    config = _config(tmp_path)
    folder, jobs = _sweep(tmp_path, config)
    code = "import sys, time; from pathlib import Path; from llmtune.runs.status import RunStatusFile\n"
    code += "RunStatusFile(Path(sys.argv[1])).start(); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(jobs[2].folder.status_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(RunError, match=f"{jobs[2].folder.path} is still running as process {other.pid}"):
            finish_sweep(folder, config)
        other.kill()
    assert _runs(jobs) == [0] * 4


def test_the_plan_reads_back_also_where_all_was_moved(tmp_path) -> None:
    folder, jobs = _sweep(tmp_path, _config(tmp_path), num_jobs=2)
    plan = read_plan(folder)
    assert [(job.name, job.folder, job.differences) for job in plan.jobs] == [
        (job.name, job.folder, job.differences) for job in jobs
    ]
    assert (plan.stages, plan.working_folder) == (["train"], tmp_path)
    assert runs_of_sweep(folder.path) == [job.folder.path for job in jobs]
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = read_plan(RunFolder(tmp_path / "moved" / folder.path.name))
    assert [job.folder.path.parent for job in moved.jobs] == [tmp_path / "moved"] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no sweep.json: an older llmtune began it"),
        ("{", "is damaged"),
        ('{"format_version": 1, "stages": [], "jobs": [{}]}', "is damaged"),
        ('{"format_version": 2}', "has format version 2, this llmtune reads up to 1"),
    ],
)
def test_a_plan_that_cannot_be_read_is_said(tmp_path, content, message) -> None:
    folder = new_sweep_folder(tmp_path, datetime(2026, 1, 2, 3, 4, 5))
    if content is not None:
        folder.sweep_file.write_text(content)
    with pytest.raises(RunError, match=message):
        finish_sweep(folder, _config(tmp_path))


def test_a_sweep_is_found_by_folder_name_and_as_the_newest(tmp_path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(RunError, match=f"run=latest: no sweep is there; there is no sweep in {runs}"):
        find_sweep("latest", runs)
    old, new, empty = (new_sweep_folder(runs, datetime(2026, 1, 2, 3, 4, second)) for second in (1, 2, 3))
    for folder in (old, new):
        folder.sweep_file.write_text("{}")
    RunStatusFile(old.status_file).start("a" * 32)
    assert find_sweep("latest", runs) == new
    assert find_sweep("a" * 32, runs) == old
    assert find_sweep(old.path.name, runs) == find_sweep(str(old.path), runs) == old
    assert find_sweep(str(empty.path), runs) == empty
    with pytest.raises(RunError, match=f"run=nothing: no sweep is there; the newest sweeps: {new.path}, {old.path}"):
        find_sweep("nothing", runs)
    run = Path(start_run_folder(_config(tmp_path)).path)
    with pytest.raises(RunError, match="is a run, not a sweep; to go on with it, leave out -m"):
        find_sweep(str(run), runs)
