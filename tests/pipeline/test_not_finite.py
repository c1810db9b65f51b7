"""A loss or gradient that isn't finite, provoked for real: a failed run with a good checkpoint and a sound record."""

import json
import math
import re
import shutil

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile
from llmtune.training.checkpoint import checkpoint_step, find_damage, list_checkpoints

from .conftest import ASSETS

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
FULL = ["train", "method=full", "train.checkpoint_every_steps=1", "train.warmup_steps=0"]
HUGE = [*FULL, "train.learning_rate=1e25"]
OPTIMIZERS = ["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "sgd"]
NAMED = re.compile(r"^llmtune: step (\d+): the loss is .*; examples: [0-9a-f]+ \(.*examples\.jsonl:\d+\)", re.MULTILINE)


def _fault(workplace, capsys) -> int:
    """The step that the message names; the record says the same, and holds nothing that isn't finite."""
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    named = NAMED.search(shown)
    assert named is not None, shown
    step, folder = int(named[1]), workplace.newest
    record = RunStatusFile(folder.status_file).read()
    assert record.status == "FAILED"
    assert record.error.startswith(f"step {step}: the loss is ")
    for path in list_checkpoints(folder.checkpoints):
        assert checkpoint_step(path) < step
        assert find_damage(path) is None
        for file in path.glob("*.safetensors"):
            tensors = {name: tensor for name, tensor in load_file(file).items() if tensor.is_floating_point()}
            assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()), file
    values = [value for entry in MetricsLog(folder.metrics_file).read() for value in entry.values()]
    assert all(math.isfinite(value) for value in values)
    return step


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_huge_learning_rate_fails_the_run_and_leaves_the_checkpoint_before(workplace, capsys, optimizer) -> None:
    assert workplace.train(*HUGE, f"train.optimizer={optimizer}", "tracking.backend=none") == 1
    step = _fault(workplace, capsys)
    steps = [checkpoint_step(path) for path in list_checkpoints(workplace.newest.checkpoints)]
    assert steps == [step - 1]
    assert [number for number, _ in MetricsLog(workplace.newest.metrics_file).losses("train/loss")] == steps


def test_mlflow_says_failed_and_has_only_finite_metrics(workplace, capsys) -> None:
    assert workplace.train(*HUGE, "train.log_every_steps=1") == 1
    step = _fault(workplace, capsys)
    client = MlflowClient(f"sqlite:///{workplace.folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("llmtune").experiment_id])
    assert run.info.status == "FAILED"
    entries = [entry for name in run.data.metrics for entry in client.get_metric_history(run.info.run_id, name)]
    assert {entry.step for entry in entries if entry.key == "train/loss"} == set(range(1, step))
    # MLflow keeps an infinite value as the largest float
    assert all(abs(entry.value) < 1e300 for entry in entries)


def test_a_model_with_an_infinite_weight_makes_no_step(workplace, capsys) -> None:
    broken = workplace.folder / "broken"
    shutil.copytree(ASSETS / "tiny_llama", broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("inf")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    words = [*FULL, "train.learning_rate=1e-4", "tracking.backend=none"]
    assert workplace.train(*words, model=str(broken)) == 1
    assert _fault(workplace, capsys) == 1
    assert list_checkpoints(workplace.newest.checkpoints) == []


def test_control_a_moderate_learning_rate_finishes(workplace) -> None:
    assert workplace.train(*FULL, "train.learning_rate=1e-4", "tracking.backend=none") == 0
    assert json.loads(workplace.newest.status_file.read_text())["status"] == "FINISHED"
