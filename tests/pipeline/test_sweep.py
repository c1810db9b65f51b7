"""A sweep: a process a job, one MLflow parent, and the truth about jobs that fail."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from llmtune.cli import run
from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile

from .conftest import ASSETS, SHORT

QUICK = ["evaluate.num_samples=0", "export.formats=[hf]", "export.max_loss_rise=1.0"]


def _parent_and_children(folder: Path):
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("llmtune")
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in runs if run not in children]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    return client, parent, children


def test_methods_end_as_finished_children_and_a_comparison(workplace, capfd) -> None:
    assert workplace.train("-m", "+method=lora,full", *QUICK, "train", "evaluate") == 0
    client, parent, children = _parent_and_children(workplace.folder)
    assert parent.info.status == "FINISHED"
    assert {(run.data.params["method.name"], run.info.status) for run in children} == {
        ("lora", "FINISHED"),
        ("full", "FINISHED"),
    }
    found = client.search_runs(
        [parent.info.experiment_id], "metrics.`evaluate/loss` < 20 and params.method.rank = '16'"
    )
    assert {run.data.params["method.name"] for run in found} == {"lora"}
    _check_compared(client, parent, 3)
    shown = capfd.readouterr().out
    assert "compare-runs?runs=" in shown
    assert all(run.info.run_id in shown for run in children)


@pytest.mark.slow
def test_a_job_that_fails_does_not_stop_the_others(workplace, capfd) -> None:
    broken = workplace.folder / "broken.jsonl"
    broken.write_text("not json\n")
    words = ["-m", f"data.path=[{broken},{ASSETS / 'text.jsonl'}]", "train", *QUICK]
    assert workplace.train(*words) == 1
    _, parent, children = _parent_and_children(workplace.folder)
    assert parent.info.status == "FAILED"
    assert sorted(run.info.status for run in children) == ["FAILED", "FINISHED"]
    (summary,) = (workplace.folder / "runs").glob("*-sweep-*/summary.json")
    entries = json.loads(summary.read_text())
    assert [entry["status"] for entry in entries] == ["FAILED", "FINISHED"]
    assert "broken.jsonl" in entries[0]["error"] or "exit" in entries[0]["error"]
    assert "broken.jsonl" in capfd.readouterr().err


@pytest.mark.slow  # tests/unit/sweep/test_run.py finishes a killed job in short
def test_a_job_and_a_sweep_that_are_killed_are_finished_as_if_they_had_not_been(workplace) -> None:
    """A killed job doesn't stop the next; a killed sweep's job ends; what is left is run, to the same bits.

    The jobs differ in what has no bearing on the training. The second ends before it trains, and later trains in one
    go: it tells what the first has to come to.
    """
    runs = workplace.folder / "runs"
    sweep = _start(*_words(workplace, "train.num_epochs=8"), "-m", "train", "train.keep_checkpoints=2,3")
    first = _job_that_trains(runs)
    _wait_for(lambda: any((first / "checkpoints").glob("checkpoint-*")))
    os.kill(_process_of(first), signal.SIGKILL)
    second = next(path for path in runs.glob("*-lora-*") if path != first)
    _wait_for((second / "status.json").exists)
    assert RunStatusFile(first / "status.json").read().error.startswith("ended by SIGKILL")
    job = psutil.Process(_process_of(second))
    sweep.kill()
    sweep.wait()
    _wait_for(lambda: _is_gone(job))

    assert run(["-m", "run=latest"]) == 0
    client, parent, children = _parent_and_children(workplace.folder)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    names = {f"keep_checkpoints=2 {first.name[-4:]}", f"keep_checkpoints=3 {second.name[-4:]}"}
    assert {run.info.run_name for run in children} == names
    assert {run.data.tags["sweep.train.keep_checkpoints"] for run in children} == {"2", "3"}
    assert [("going on from" in (job / "log.txt").read_text()) for job in (first, second)] == [True, False]
    disturbed, undisturbed = (_losses(client, children, "train.keep_checkpoints", kept) for kept in (2, 3))
    assert disturbed == undisturbed and len(undisturbed) == 8 * 8


@pytest.mark.slow
def test_a_sweep_killed_at_several_moments_ends_as_if_it_had_not_been(workplace) -> None:
    draw, runs = random.Random(1), workplace.folder / "runs"
    sweep = _start(*_words(workplace, "train.num_epochs=30"), "-m", "train", "seed=1,2")
    _wait_for(lambda: any(runs.glob("*-sweep-*/sweep.json")))
    num_kills = 0
    while num_kills < 6:
        time.sleep(draw.uniform(0, 12))
        if sweep.poll() is not None:
            break
        jobs = psutil.Process(sweep.pid).children()
        sweep.kill()
        sweep.wait()
        for job in jobs if num_kills % 2 else []:
            job.kill()
        _wait_for(lambda jobs=jobs: all(map(_is_gone, jobs)))
        num_kills += 1
        sweep = _start("-m", "run=latest")
    assert num_kills >= 3
    assert sweep.wait(timeout=240) == 0
    client, parent, children = _parent_and_children(workplace.folder)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    for seed in (1, 2):
        assert _losses(client, children, "seed", seed) == _straight(workplace, seed, num_epochs=30)


def test_a_sweep_of_wrong_values_starts_nothing(workplace, capsys) -> None:
    assert workplace.train("-m", "method=lora,full", "method.rank=0,8") == 2
    assert "method.rank=0: should be greater than or equal to 1" in capsys.readouterr().err
    assert not (workplace.folder / "runs").exists()


def test_an_axis_is_left_out_where_it_does_nothing_and_equal_jobs_are_one(workplace, capsys) -> None:
    assert workplace.train("-m", "method=lora,full", "method.rank=4,8", "--cfg", "job") == 0
    shown = capsys.readouterr()
    assert "rank: 4" in shown.out
    assert "method.rank is left out for method=full, which has no such key" in shown.err
    assert "1 job is equal to another and isn't run again" in shown.err
    assert "llmtune: the first of 3 jobs" in shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=3", "train"], "seed=3: a sweep goes on as it began; leave it out"),
        (["generate"], "-m: a sweep runs stages; leave out generate"),
    ],
)
def test_what_a_sweep_cannot_go_on_with_is_refused(workplace, capsys, words, message) -> None:
    sweep = workplace.folder / "runs" / "20260101-000000-sweep-abcd"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text("{}")
    assert run(["-m", "run=latest", *words]) == 2
    assert message in capsys.readouterr().err


def _check_compared(client: MlflowClient, parent, num_rows: int) -> None:
    """The sweep's MLflow run holds the verdict, a table with the base model, and the comparison's files."""
    (file,) = Path(parent.data.tags["run_folder"]).glob("comparison.json")
    comparison, told = json.loads(file.read_text()), parent.data.tags["mlflow.note.content"]
    assert len(comparison["rows"]) == num_rows and comparison["unfair"] == []
    assert "| base model |" in told
    assert comparison["verdict"] and comparison["verdict"][:12] in told
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"comparison.json", "comparison.md", "comparison.html", "summary.json"} <= names


def _words(workplace, *more: str) -> list[str]:
    """Words of a short training that is saved often."""
    words = [*SHORT, f"model={ASSETS / 'tiny_llama'}", f"data.path={ASSETS / 'examples.jsonl'}", *QUICK]
    return [*words, f"cache_dir={workplace.folder / 'cache'}", "train.checkpoint_every_steps=4", *more]


def _start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "llmtune", *words], stdout=subprocess.DEVNULL)


def _losses(client: MlflowClient, children, key: str, value: int) -> list[tuple[int, float]]:
    """The training losses of the job with that value; those that MLflow has are among them, each once."""
    (child,) = [run for run in children if run.data.params[key] == str(value)]
    losses = MetricsLog(RunFolder(Path(child.data.tags["run_folder"])).metrics_file).losses("train/loss")
    of_mlflow = [(one.step, one.value) for one in client.get_metric_history(child.info.run_id, "train/loss")]
    assert len(of_mlflow) == len(set(of_mlflow)) >= len(losses) // 10
    assert set(of_mlflow) <= set(losses)
    return losses


def _straight(workplace, seed: int, num_epochs: int) -> list[tuple[int, float]]:
    """The losses of the same training by itself, in one go."""
    place = f"runs_dir=straight-{seed}"
    words = _words(workplace, f"train.num_epochs={num_epochs}", f"seed={seed}", place, "tracking.backend=none")
    assert run([*words, "train"]) == 0
    (folder,) = (workplace.folder / f"straight-{seed}").iterdir()
    losses = MetricsLog(folder / "metrics.jsonl").losses("train/loss")
    assert len(losses) == 8 * num_epochs
    return losses


def _job_that_trains(runs: Path) -> Path:
    """The folder of the first job, once it has trained a step."""
    _wait_for(lambda: any(file.stat().st_size for file in runs.glob("*/metrics.jsonl")))
    return next(file.parent for file in runs.glob("*/metrics.jsonl") if file.stat().st_size)


def _process_of(job: Path) -> int:
    return json.loads((job / "status.json").read_text())["pid"]


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
