"""The training loop: steps of micro-batches, one weight update each."""

import time
from functools import partial

import torch

from llmtune.distributed import rank
from llmtune.training.ahead import StepBatches, StepsAhead
from llmtune.training.collectives import sum_gradients
from llmtune.training.faults import MOST_UNREAD, judge_step, read_steps
from llmtune.training.fitting import fitting_gradients
from llmtune.training.optimizer import update_weights
from llmtune.training.parts import Callbacks, StepResult, StepWatch, Touched, TrainParts, TrainState, UnreadStep
from llmtune.training.scaler import scale_on_device
from llmtune.training.schedule import learning_rate
from llmtune.training.stopping import heed_own, stopping_after_a_step, sum_of_loss


def train(parts: TrainParts, state: TrainState, callbacks: Callbacks) -> TrainState:
    """Train from where `state` stands to the last step, or until a callback asks to stop.

    Args:
        parts: model, optimizer, plan and examples.
        state: fresh, or a checkpoint's.
        callbacks: called in this order; validation stands before checkpointing, so that a checkpoint knows the best.

    Returns:
        `state`, as it stands at the end.

    Raises:
        TrainingFault: a loss or gradient isn't finite, told where a callback next reads the steps; the weights, the
            optimizer's state and `state` are those of the step before it.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM asked for it; the step under way was finished, and the
            callbacks called after it with `state.should_stop`, unless it was the second one.
    """
    parts.watch = StepWatch(parts.device, state)
    for callback in callbacks:
        callback.on_train_start(parts, state)
    with stopping_after_a_step(parts, state), StepsAhead(parts) as ahead:
        while state.global_step < parts.settings.schedule.total_steps and not state.should_stop:
            result = train_step(parts, state, ahead)
            state.global_step += 1
            state.num_tokens += result.num_tokens
            state.num_supervised_tokens += result.num_supervised_tokens
            heed_own(parts, state)
            if len(parts.watch.unread) >= MOST_UNREAD:
                read_steps(parts, state)
            for callback in callbacks:
                callback.on_step_end(parts, state, result)
        read_steps(parts, state)
    for callback in callbacks:
        callback.on_train_end(parts, state)
    return state


def train_step(parts: TrainParts, state: TrainState, ahead: StepsAhead | None = None) -> StepResult:
    """Make the update number `state.global_step`: the same examples, order and dropout whenever it is made.

    A loss or gradient that isn't finite changes no weight, in this step or a later one, and is raised where the step's
    figures are read.

    Args:
        parts: what is trained.
        state: how far it has come.
        ahead: makes this step's batches, and meanwhile the next one's; None makes this step's here.
    """
    started, number, settings = time.perf_counter(), state.global_step, parts.settings
    step = ahead.take(number) if ahead else StepBatches(parts, parts.plan.step(number, rank()))
    rate = learning_rate(number, settings.schedule)
    parts.model.train()

    shares = fitting_gradients(parts, number, step)
    sum_gradients(parts.trainable)
    gradients = [parameter.grad for parameter in parts.trainable if parameter.grad is not None]
    if parts.scaler is not None and gradients:
        parts.scaler.unscale_(parts.optimizer)
    norm = torch.nn.utils.get_total_norm(gradients)
    loss, grad_norm = sum_of_loss(parts, shares.sum()), norm.double().to(parts.device)

    withheld, overflowed = judge_step(parts, state, loss, grad_norm)
    if settings.max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parts.trainable, settings.max_grad_norm, norm)
    parts.watch.mark_work()
    touched = _update(parts, rate, withheld) if gradients else []
    parts.optimizer.zero_grad(set_to_none=parts.captured is None)

    planned = step.planned
    result = StepResult(number + 1, rate, planned.num_tokens, planned.num_supervised_tokens)
    result.read = partial(read_steps, parts, state)
    scale = scale_on_device(parts.scaler, parts.device)
    figures = torch.stack([loss, grad_norm, overflowed.double(), scale.double()])
    if not parts.watch.unread:
        parts.watch.unread_since = started
    parts.watch.unread.append(UnreadStep(result, figures, planned.micro_batches, shares, touched))
    return result


def _update(parts: TrainParts, rate: float, withheld: torch.Tensor) -> list[Touched]:
    """Change the weights unless withheld; under fp16 adapt the loss scale."""
    for group in parts.optimizer.param_groups:
        group["lr"] = rate
    touched = update_weights(parts.optimizer, withheld, may_wait=parts.scaler is not None)
    if parts.scaler is not None:
        parts.scaler.update()
    return touched
