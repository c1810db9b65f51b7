"""A sweep where there are several GPUs: a job on each, side by side."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from llmtune.runs.manifest import Manifest
from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile
from llmtune.sweep.devices import visible_gpus

pytestmark = pytest.mark.multi_gpu

QUICK = ["train", "evaluate", "evaluate.num_samples=0", "tracking.backend=none", "train.num_epochs=30"]


def _runs(folder: Path) -> list[Path]:
    """The sweep's run folders, by job."""
    (sweep,) = (folder / "runs").glob("*-sweep-*/sweep.json")
    return [Path(job["folder"]) for job in json.loads(sweep.read_text())["jobs"]]


def _span(run: Path) -> tuple[datetime, datetime]:
    record = RunStatusFile(run / "status.json").read()
    assert record is not None and record.ended_at is not None
    return datetime.fromisoformat(record.started_at), datetime.fromisoformat(record.ended_at)


def test_two_jobs_train_at_once_on_a_gpu_each_and_as_they_do_alone(workplace, capfd) -> None:
    first_gpu, second_gpu = visible_gpus()[:2]
    assert workplace.train("-m", "seed=1,2,3", *QUICK) == 0
    shown = capfd.readouterr().out
    assert f"job 1 of 3 on GPU {first_gpu}: seed=1" in shown
    assert f"job 2 of 3 on GPU {second_gpu}: seed=2" in shown
    assert "trained:" not in shown
    first, second, third = _runs(workplace.folder)
    assert _span(first)[0] < _span(second)[1] and _span(second)[0] < _span(first)[1]
    assert "trained: 240 steps" in (first / "output.txt").read_text()
    for run in (first, second, third):
        choices = Manifest(run / "manifest.json").section("choices")
        assert choices["device"].startswith("cuda") and choices["num_processes"] == 1
    assert workplace.train("seed=2", *QUICK, "runs_dir=alone", "hardware=single_gpu") == 0
    (alone,) = (workplace.folder / "alone").iterdir()
    losses = [MetricsLog(run / "metrics.jsonl").losses("train/loss")[-1][1] for run in (second, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_job_of_several_processes_takes_all_gpus(workplace, capfd) -> None:
    gpus = visible_gpus()
    assert workplace.train("-m", "seed=1,2", "hardware=ddp", *QUICK) == 0
    assert f"job 2 of 2 on GPUs {', '.join(gpus)}: seed=2" in capfd.readouterr().out
    first, second = _runs(workplace.folder)
    assert _span(first)[1] <= _span(second)[0]
    for run in (first, second):
        assert Manifest(run / "manifest.json").section("choices")["num_processes"] == len(gpus)
