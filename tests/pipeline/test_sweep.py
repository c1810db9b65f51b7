"""A sweep: a process a job, one MLflow parent, and the truth about jobs that fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

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


def test_three_methods_end_as_three_finished_children(workplace, capfd) -> None:
    assert workplace.train("-m", "+method=lora,qlora,full", *QUICK) == 0
    client, parent, children = _parent_and_children(workplace.folder)
    assert parent.info.status == "FINISHED"
    assert {(run.data.params["method.name"], run.info.status) for run in children} == {
        ("lora", "FINISHED"),
        ("qlora", "FINISHED"),
        ("full", "FINISHED"),
    }
    found = client.search_runs(
        [parent.info.experiment_id], "metrics.`evaluate/loss` < 20 and params.method.rank = '16'"
    )
    assert {run.data.params["method.name"] for run in found} == {"lora", "qlora"}
    assert "| method=qlora |" in parent.data.tags["mlflow.note.content"]
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


def test_a_job_that_is_killed_does_not_stop_the_others(workplace) -> None:
    words = [*SHORT, f"model={ASSETS / 'tiny_llama'}", f"data.path={ASSETS / 'examples.jsonl'}", "train", *QUICK]
    words += [f"cache_dir={workplace.folder / 'cache'}", "-m", "train.num_epochs=300,1"]
    sweep = subprocess.Popen([sys.executable, "-m", "llmtune", *words], stdout=subprocess.DEVNULL)
    os.kill(_training_process(workplace.folder / "runs"), signal.SIGKILL)
    assert sweep.wait(timeout=120) == 1
    _, parent, children = _parent_and_children(workplace.folder)
    assert parent.info.status == "FAILED"
    assert {run.data.params["train.num_epochs"]: run.info.status for run in children} == {
        "300": "KILLED",
        "1": "FINISHED",
    }


def test_a_sweep_of_wrong_values_starts_nothing(workplace, capsys) -> None:
    assert workplace.train("-m", "method=lora,full", "method.rank=4,8") == 2
    assert "method.rank: method=full has no such key" in capsys.readouterr().err
    assert not (workplace.folder / "runs").exists()


def _training_process(runs: Path) -> int:
    """The process of the first job, once it has trained a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for metrics in runs.glob("*/metrics.jsonl"):
            if metrics.stat().st_size:
                return json.loads((metrics.parent / "status.json").read_text())["pid"]
        time.sleep(0.02)
    raise AssertionError("no job began to train")
