"""What a comparison reads of one finished run: each test example's loss, what it cost, and what it was made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmtune.runs.layout import RunFolder


@dataclass(frozen=True, kw_only=True)
class ExampleLosses:
    """A model's loss on each of N examples, in the order of their ids."""

    example_ids: tuple[str, ...]
    clusters: np.ndarray
    """str [N]: what an example belongs to (a document, a module); examples of one cluster aren't independent."""
    loss_sums: np.ndarray
    """float64 [N]: summed negative log likelihood in nats."""
    num_tokens: np.ndarray
    """int64 [N]: supervised tokens."""
    num_bytes: np.ndarray
    """int64 [N]: UTF-8 bytes of their text."""


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What training took; None where it isn't known, as for weights that were made elsewhere."""

    num_trainable: int | None = None
    num_parameters: int | None = None
    peak_memory_gib: float | None = None
    tokens_per_second: float | None = None
    """Real tokens (no padding) a second, over all devices."""
    train_seconds: float | None = None
    """Wall time of training, validations and saves included."""
    device: str | None = None
    """What it ran on, such as the GPU's name."""
    num_devices: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """How much training a run had; None where it isn't known."""

    examples_per_step: int | None = None
    """Over all processes; None too where steps are filled with tokens."""
    total_steps: int | None = None
    """What its schedule was made for."""
    num_steps: int | None = None
    """Done, fewer where it stopped early."""
    num_tokens: int | None = None
    """Seen in all steps, over all processes."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run that has measured its weights on the test set."""

    folder: RunFolder
    config: Mapping[str, Any]
    """The resolved config, flat: dotted key to value."""
    mlflow_run_id: str | None
    method: str
    """`method.name`."""
    seed: int
    tuned: ExampleLosses
    base: ExampleLosses | None
    """The base model's; None where `evaluate.base` was off."""
    general_tuned: ExampleLosses | None = None
    """On general text, for what was forgotten; None where it wasn't measured."""
    general_base: ExampleLosses | None = None
    validation_loss: float | None = None
    """The best in training, nats per supervised token: what a choice among settings may look at."""
    num_test_seen: int | None = 0
    """Test examples that also stand in the data which the weights were trained or selected on; None where that isn't
    known."""
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    digests: Mapping[str, str]
    """sha256 of what the run read: `base` (weights), `tokenizer`, `train` (the training split's tokens and labels in
    their order), `sources` (the training files), `data` (all that was prepared), `general` (the general text's tokens);
    what is unknown is missing."""
    choices: Mapping[str, Any]
    """What was chosen at run time, such as precision and attention."""
    versions: Mapping[str, str]
    """Versions of llmtune, torch, transformers and the like."""
    cost: RunCost
