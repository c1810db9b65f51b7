"""A language model of one embedding and one matrix with what the loop needs around it: steps in microseconds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmtune.data.plan import PlanSettings, StepPlan
from llmtune.models.precision import Precision
from llmtune.training.optimizer import make_optimizer
from llmtune.training.parts import LoopSettings, StepFigures, StepResult, TrainParts
from llmtune.training.schedule import ScheduleSettings

VOCABULARY = 11


class Bigram(nn.Module):
    """Predicts a token from the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


class Weights:
    """Saves and restores the whole state dict."""

    name = "weights"

    def weights(self, model):
        return model.state_dict()

    def save(self, model, folder, weights=None):
        save_file(weights or self.weights(model), folder / "model.safetensors")

    def restore(self, model, folder):
        model.load_state_dict(load_file(folder / "model.safetensors"))


class Examples:
    """A table of examples in memory: lengths 3 to 8, the first of three tokens not supervised."""

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        self.rows = [generator.integers(0, VOCABULARY, generator.integers(3, 9)).astype(np.int32) for _ in range(count)]
        self.num_tokens = np.array([len(row) for row in self.rows])
        self.num_supervised_tokens = np.array([int((self.labels(i)[1:] != -100).sum()) for i in range(count)])

    def __len__(self) -> int:
        return len(self.rows)

    def input_ids(self, index):
        return self.rows[index]

    def labels(self, index):
        labels = self.rows[index].copy()
        labels[: len(labels) // 3 + 1] = -100
        return labels

    def example_id(self, index):
        return f"id{index}"

    def source(self, index):
        return f"file.jsonl:{index + 1}"


@pytest.fixture
def make_parts():
    """A function that builds `TrainParts`: 12 examples, 4 a step, 3 steps an epoch."""

    def make(total_steps: int = 6, optimizer: str = "adamw", max_grad_norm: float | None = None) -> TrainParts:
        torch.manual_seed(0)
        model, table = Bigram(), Examples(12)
        settings = PlanSettings(
            seed=1, micro_batch_size=2, gradient_accumulation_steps=2, num_processes=1, packing=False, max_seq_len=16
        )
        return TrainParts(
            model=model,
            method=Weights(),
            optimizer=make_optimizer(model, optimizer, 0.1, 0.0),
            plan=StepPlan(table.num_tokens, table.num_supervised_tokens, settings),
            table=table,
            precision=Precision("fp32", "cpu", "for the test"),
            device=torch.device("cpu"),
            settings=LoopSettings(
                seed=1,
                schedule=ScheduleSettings(name="constant", peak=0.1, warmup_steps=0, total_steps=total_steps),
                max_grad_norm=max_grad_norm,
                packed=False,
                pad_token_id=0,
            ),
        )

    return make


@pytest.fixture
def step_result():
    """A step as the callbacks see it."""
    figures = StepFigures(loss=2.0, grad_norm=0.5, seconds=0.25)
    return StepResult(number=1, learning_rate=0.1, num_tokens=20, num_supervised_tokens=10, figures=figures)


class RecordingTracker:
    """Keeps what is logged."""

    run_id = None

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step):
        self.metrics.append((step, dict(metrics)))


@pytest.fixture
def tracker():
    """A tracker that keeps what is logged."""
    return RecordingTracker()
