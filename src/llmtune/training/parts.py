"""What the loop works with and what it keeps count of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from signal import Signals
from typing import Any, Protocol

import torch
from torch import nn

from llmtune.data.collate import MicroBatch
from llmtune.data.plan import MicroBatches, StepPlan
from llmtune.data.token_table import TokenTable
from llmtune.errors import TrainingFault
from llmtune.methods.method import Method
from llmtune.models.precision import Precision
from llmtune.signals import ENDING
from llmtune.training.end_of_work import EndOfWork, end_of_work
from llmtune.training.schedule import ScheduleSettings
from llmtune.training.splits import Splits


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


class Captured(Protocol):
    """Forward and backward over a micro-batch, ready to be run; see `captured`."""

    def run(self, batch: MicroBatch, divisor: int) -> torch.Tensor:
        """This micro-batch's share of the step's loss, float64, its gradients added; the batch lies on the host."""
        ...


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
    splits: Splits = field(default_factory=Splits)
    """How micro-batches are cut where memory is short."""
    captured: Captured | None = None
    """The pass as a CUDA graph, for micro-batches that aren't cut; None where the host launches each kernel."""

    @cached_property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that the optimizer updates."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @cached_property
    def watch(self) -> "StepWatch":
        """What the steps left on the device; see `faults`."""
        return StepWatch(self.device)


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
class StepFigures:
    """What is known of a step once the host has read it; all finite, but for a skipped step's gradient norm."""

    loss: float
    """Nats per supervised token, over the whole step and all processes."""
    grad_norm: float
    """Norm of the gradient before clipping; infinite in a skipped step."""
    seconds: float
    """Wall time of the step: its share, by tokens, of the time of all steps that were read with it."""
    skipped: bool = False
    """Whether fp16 overflowed, so that the weights stayed as they were."""
    num_overflows: int = 0
    """Updates that the run has skipped so far."""
    loss_scale: float | None = None
    """The loss scale after the step; None without a scaler."""


@dataclass
class StepResult:
    """What one step did. Its figures stay on the device until they are asked for, which waits for the device.

    Several processes must ask at the same step, since a fault is told by all of them together.
    """

    number: int
    """Steps done, this one included."""
    learning_rate: float
    num_tokens: int
    """Tokens of the whole step, over all processes."""
    num_supervised_tokens: int
    figures: StepFigures | None = None
    """None until the host has read the step."""
    read: Callable[[], None] = lambda: None
    """Reads the figures of all steps that aren't read yet."""

    @property
    def known(self) -> StepFigures:
        """The figures, read now if they weren't before.

        Raises:
            TrainingFault: a loss or gradient, of this step or one before it, isn't finite.
        """
        if self.figures is None:
            self.read()
        assert self.figures is not None, "read_steps fills it in or raises"
        return self.figures

    @property
    def loss(self) -> float:
        """`StepFigures.loss`."""
        return self.known.loss

    @property
    def grad_norm(self) -> float:
        """`StepFigures.grad_norm`."""
        return self.known.grad_norm

    @property
    def seconds(self) -> float:
        """`StepFigures.seconds`."""
        return self.known.seconds

    @property
    def skipped(self) -> bool:
        """`StepFigures.skipped`."""
        return self.known.skipped


@dataclass(frozen=True)
class Touched:
    """A parameter that an update went over."""

    parameter: nn.Parameter
    is_fresh: bool
    """Whether it had no optimizer state before."""


@dataclass(frozen=True)
class UnreadStep:
    """A step whose figures are still on the device."""

    result: StepResult
    figures: torch.Tensor
    """Float64 [4] on the device: loss, gradient norm, 1 where fp16 overflowed, loss scale (1 without a scaler)."""
    micro_batches: MicroBatches
    """Rows of the table in each of this process's micro-batches."""
    shares: torch.Tensor
    """Each micro-batch's share of the loss, on the device."""
    touched: list[Touched]


class StepWatch:
    """Flags and figures of steps, on the device so that no step waits for them.

    Args:
        device: where the steps run.
        state: whose steps these are; None until the first.
    """

    def __init__(self, device: torch.device, state: TrainState | None = None) -> None:
        self.state = state
        self.broken = torch.zeros((), dtype=torch.float32, device=device)
        """1 from the first step on whose loss or gradient isn't finite; no later update is made."""
        self.first_broken = torch.full((), -1, dtype=torch.int64, device=device)
        """That step's number, counted from 0; -1 while there is none."""
        row = 0 if state is None else state.overflows_in_a_row
        self.overflows_in_a_row = torch.full((), row, dtype=torch.int64, device=device)
        self.unread: list[UnreadStep] = []
        self.unread_since = 0.0
        """When the first unread step began."""
        self.listeners: list[Callable[[Sequence[StepResult]], None]] = []
        """Called with the steps that have just been read, all of them sound."""
        self.fault: TrainingFault | None = None
        """What ended the run, once it was read."""
        self.stop_flags = torch.zeros(len(ENDING), dtype=torch.float64, device=device)
        """How often processes were asked to stop by each of `ENDING`, summed over steps; see `stopping`."""
        self.stopped_by: Signals | None = None
        """The signal that ends the training after this step, in every process."""
        self.end_of_work: EndOfWork | None = end_of_work(device)
        """Where the last step's work for the device ends, but for its update; None where the host does it itself."""

    def mark_work(self) -> None:
        """Take note that the device has been given all of a step but its update."""
        if self.end_of_work is not None:
            self.end_of_work.mark()


class Callback(Protocol):
    """Something done around steps, in every process, in the order in which the callbacks are given."""

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """Called once before the first step; after a resume, `state` is the checkpoint's."""
        ...

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Called after each step; `state.global_step` already counts it. To ask `result` for its loss costs a wait."""
        ...

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Called once after the last step; not after an exception."""
        ...


Callbacks = Sequence[Callback]
