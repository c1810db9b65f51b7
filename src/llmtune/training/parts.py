"""What the loop works with and what it keeps count of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from llmtune.data.plan import StepPlan
from llmtune.data.token_table import TokenTable
from llmtune.methods.method import Method
from llmtune.models.precision import Precision
from llmtune.training.schedule import ScheduleSettings


@dataclass(frozen=True)
class LoopSettings:
    """The plain values that decide a step."""

    seed: int
    """Dropout depends on it, the step and the process alone."""
    schedule: ScheduleSettings
    """Learning rate of each step, and how many steps there are."""
    max_grad_norm: float | None
    """Gradients are scaled down to this norm; None leaves them."""
    packed: bool
    """Whether a micro-batch's examples lie end to end instead of padded."""
    pad_token_id: int
    """What fills padded rows."""


@dataclass
class TrainParts:
    """What is trained, with what and on what."""

    model: nn.Module
    method: Method
    optimizer: Any
    plan: StepPlan
    table: TokenTable
    precision: Precision
    device: torch.device
    settings: LoopSettings
    scaler: torch.amp.GradScaler | None = None
    """Loss scaler; only with fp16, see `make_scaler`."""

    @cached_property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that the optimizer updates."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


@dataclass
class TrainState:
    """How far a run has come; saved with each checkpoint, but for `should_stop`."""

    global_step: int = 0
    """Steps done: the number of the next one, counted from 0. A step that fp16 skipped counts."""
    num_tokens: int = 0
    """Tokens seen, over all processes."""
    num_supervised_tokens: int = 0
    """Supervised tokens seen, over all processes."""
    seconds: float = 0.0
    """Wall time of all steps, of every process that worked on the run; validation and saving left out."""
    num_overflows: int = 0
    """Updates that fp16 skipped."""
    overflows_in_a_row: int = 0
    """Skipped updates since the last one that was made."""
    validation_losses: list[tuple[int, float]] = field(default_factory=list)
    """Steps done and nats per supervised token, at each validation."""
    best_validation_loss: float | None = None
    best_step: int | None = None
    """Steps done at the best validation."""
    validations_without_improvement: int = 0
    should_stop: bool = False
    """Set by a callback or a signal: the loop ends before the next step."""


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    loss: float
    """Nats per supervised token, over the whole step and all processes."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    learning_rate: float
    num_tokens: int
    """Tokens of the whole step, over all processes."""
    num_supervised_tokens: int
    seconds: float
    """Wall time of the step."""
    skipped: bool = False
    """Whether fp16 overflowed, so that the weights stayed as they were."""


class Callback(Protocol):
    """Something done around steps, in every process, in the order in which the callbacks are given."""

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """Called once before the first step; after a resume, `state` is the checkpoint's."""
        ...

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Called after each step; `state.global_step` already counts it."""
        ...

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Called once after the last step; not after an exception."""
        ...


Callbacks = Sequence[Callback]
