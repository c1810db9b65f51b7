"""A loss or gradient that isn't finite: kept from the weights on the device, told once the host reads the steps.

No step waits for the device, but for the updates of bitsandbytes, which do so themselves. A step's loss and gradient
norm set a flag there that withholds its update and all later ones; the host reads it with the figures of all steps
since the last time, before a log line, a validation or a save.
"""

import math
import time
from collections.abc import Sequence

import torch

from llmtune.distributed import is_first
from llmtune.errors import TrainingFault
from llmtune.logs import say
from llmtune.signals import flagged
from llmtune.training.loss import name_examples
from llmtune.training.optimizer import forget_withheld
from llmtune.training.parts import StepFigures, StepWatch, TrainParts, TrainState, UnreadStep
from llmtune.training.scaler import scale_on_device
from llmtune.training.stopping import heed

MOST_UNREAD = 256
"""Steps after which the host reads though nobody asked: so many may be lost to a fault."""

_MOST_OVERFLOWS = 10
_LOWEST_SCALE = 1.0


def start_watch(parts: TrainParts, state: TrainState) -> StepWatch:
    """The watch over the steps of `state`, new unless it watches them already."""
    if parts.watch.state is not state:
        parts.watch = StepWatch(parts.device, state)
    return parts.watch


def judge_step(
    parts: TrainParts, state: TrainState, loss: torch.Tensor, grad_norm: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decide on the device whether the update of step `state.global_step` may be made.

    Args:
        parts: its scaler decides what an overflow is.
        state: whose next step it is.
        loss: of the whole step, the sum over the processes, a scalar.
        grad_norm: of the gradient that the processes have summed up, a scalar.

    Returns:
        withheld: float32, 1 where the weights must stay as they are, as torch's fused optimizers take it.
        overflowed: bool, whether that is only an fp16 overflow, after which training goes on. Without a scaler, at
            scale 1 or after 10 in a row it is a fault instead.
    """
    watch = start_watch(parts, state)
    finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
    overflowed = torch.isfinite(loss) & ~finite & (scale_on_device(parts.scaler, parts.device) > _LOWEST_SCALE)
    row = (watch.overflows_in_a_row + overflowed) * ~finite
    overflowed = overflowed & (row < _MOST_OVERFLOWS)
    broken = ~(finite | overflowed)
    watch.overflows_in_a_row = row
    watch.first_broken = torch.where(broken & (watch.first_broken < 0), state.global_step, watch.first_broken)
    watch.broken = torch.maximum(watch.broken, broken.float())
    return torch.maximum(watch.broken, (~finite).float()), overflowed


def read_steps(parts: TrainParts, state: TrainState) -> None:
    """Bring the figures of all unread steps to the host, in one transfer; every process must call it alike.

    With them comes whether a process was asked to stop, see `stopping`.

    Raises:
        TrainingFault: the loss or gradient of one of them isn't finite. Weights, optimizer and counts of `state` are
            those of the step before it.
    """
    watch = parts.watch
    if watch.fault is not None:
        raise watch.fault
    if not watch.unread:
        return
    flags = torch.cat([torch.stack([watch.first_broken, watch.overflows_in_a_row]).double(), watch.stop_flags])
    read = torch.cat([*(step.figures for step in watch.unread), flags]).tolist()
    width = len(watch.unread[0].figures)
    rows, last = [read[at : at + width] for at in range(0, len(watch.unread) * width, width)], read[-len(flags) :]
    seconds = time.perf_counter() - watch.unread_since
    unread, watch.unread = watch.unread, []
    first_broken, state.overflows_in_a_row = int(last[0]), int(last[1])
    heed(parts, state, flagged(last[2:]))
    sound = [step for step in unread if first_broken < 0 or step.result.number <= first_broken]
    seconds_per_token = seconds / max(1, sum(step.result.num_tokens for step in unread))
    for step, row in zip(sound, rows, strict=False):
        _settle(parts, state, step, row, seconds_per_token)
    _tell_overflows(sound)
    for listener in watch.listeners:
        listener([step.result for step in sound])
    if len(sound) < len(unread):
        watch.fault = _undo(parts, state, unread[len(sound) :], rows[len(sound)])
        raise watch.fault


def check_weights(parts: TrainParts, state: TrainState) -> None:
    """Return if every weight is finite: an update alone can be too large, which no loss has told yet.

    Raises:
        TrainingFault: one isn't.
    """
    finite = torch.stack([torch.isfinite(weights).all() for weights in parts.trainable])
    if not finite.all():
        raise TrainingFault(
            f"step {state.global_step}: the update made weights infinite, so they aren't saved; earlier checkpoints "
            "are untouched. Lower train.learning_rate, or weight decay"
        )


def _settle(
    parts: TrainParts, state: TrainState, step: UnreadStep, row: Sequence[float], seconds_per_token: float
) -> None:
    """Give a sound step its figures."""
    loss, grad_norm, overflowed, scale = row
    seconds = seconds_per_token * step.result.num_tokens
    state.seconds += seconds
    state.num_overflows += int(overflowed)
    step.result.figures = StepFigures(
        loss=loss,
        grad_norm=math.inf if overflowed else grad_norm,
        seconds=seconds,
        skipped=bool(overflowed),
        num_overflows=state.num_overflows,
        loss_scale=None if parts.scaler is None else scale,
    )


def _tell_overflows(steps: Sequence[UnreadStep]) -> None:
    skipped = [step.result for step in steps if step.result.skipped]
    if skipped and is_first():
        numbers = ", ".join(str(result.number) for result in skipped)
        say(f"fp16 overflowed, no update at step {numbers}; loss scale now {skipped[-1].known.loss_scale:g}")


def _undo(parts: TrainParts, state: TrainState, steps: Sequence[UnreadStep], row: Sequence[float]) -> TrainingFault:
    """Take the steps from the first broken one on out of all counts.

    Returns:
        The error to raise.
    """
    for step in steps:
        forget_withheld(parts.optimizer, step.touched)
        if step.result.number <= state.global_step:
            state.num_tokens -= step.result.num_tokens
            state.num_supervised_tokens -= step.result.num_supervised_tokens
    first = steps[0].result
    state.global_step = first.number - 1
    examples = name_examples(parts, steps[0].micro_batches, steps[0].shares)
    return TrainingFault(
        f"step {first.number}: the loss is {row[0]} and the gradient norm {row[1]}, so the weights were left as they "
        f"are; examples: {examples}. Look at these examples, or lower train.learning_rate "
        f"(here {first.learning_rate:.3g})"
    )
