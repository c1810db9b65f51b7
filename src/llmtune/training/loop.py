"""The training loop: steps of micro-batches, one weight update each."""

import time

import torch

from llmtune.distributed import rank
from llmtune.errors import TrainingFault
from llmtune.seeding import derived_seed
from llmtune.training.collectives import sum_gradients, sum_over_ranks
from llmtune.training.loss import accumulate_gradients, name_examples
from llmtune.training.parts import Callbacks, StepResult, TrainParts, TrainState
from llmtune.training.scaler import note_overflow
from llmtune.training.schedule import learning_rate


def train(parts: TrainParts, state: TrainState, callbacks: Callbacks) -> TrainState:
    """Train from where `state` stands to the last step, or until a callback asks to stop.

    Args:
        parts: model, optimizer, plan and examples.
        state: fresh, or a checkpoint's.
        callbacks: called in this order; validation stands before checkpointing, so that a checkpoint knows the best.

    Returns:
        `state`, as it stands at the end.

    Raises:
        TrainingFault: a loss or gradient isn't finite; the weights are those of the step before.
    """
    for callback in callbacks:
        callback.on_train_start(parts, state)
    while state.global_step < parts.settings.schedule.total_steps and not state.should_stop:
        result = train_step(parts, state)
        state.global_step += 1
        state.num_tokens += result.num_tokens
        state.num_supervised_tokens += result.num_supervised_tokens
        state.seconds += result.seconds
        for callback in callbacks:
            callback.on_step_end(parts, state, result)
    for callback in callbacks:
        callback.on_train_end(parts, state)
    return state


def train_step(parts: TrainParts, state: TrainState) -> StepResult:
    """Make the update number `state.global_step`: the same examples, order and dropout whenever it is made.

    Raises:
        TrainingFault: the loss or the gradient isn't finite; no weight has changed.
    """
    started = time.perf_counter()
    settings = parts.settings
    step = parts.plan.step(state.global_step, rank())
    rate = learning_rate(state.global_step, settings.schedule)
    torch.manual_seed(derived_seed(settings.seed, "step", state.global_step, rank()))
    parts.model.train()

    shares = accumulate_gradients(parts, step.micro_batches, max(1, step.num_supervised_tokens))
    sum_gradients(parts.trainable)
    if parts.scaler is not None:
        parts.scaler.unscale_(parts.optimizer)
    gradients = [parameter.grad for parameter in parts.trainable if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    loss, grad_norm = torch.stack([sum_over_ranks(shares.sum()), norm.double().to(parts.device)]).tolist()

    overflowed = _is_finite(loss) and not _is_finite(grad_norm) and note_overflow(parts, state)
    if not overflowed and not (_is_finite(loss) and _is_finite(grad_norm)):
        parts.optimizer.zero_grad(set_to_none=True)
        raise TrainingFault(
            f"step {state.global_step + 1}: the loss is {loss} and the gradient norm {grad_norm}, so the weights were "
            f"left as they are; examples: {name_examples(parts, step.micro_batches, shares)}. Look at these "
            f"examples, or lower train.learning_rate (here {rate:.3g})"
        )
    if settings.max_grad_norm is not None and not overflowed:
        torch.nn.utils.clip_grads_with_norm_(parts.trainable, settings.max_grad_norm, norm)
    if gradients:
        _update(parts, rate)
    if not overflowed:
        state.overflows_in_a_row = 0
    parts.optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    return StepResult(loss, grad_norm, rate, step.num_tokens, step.num_supervised_tokens, seconds, skipped=overflowed)


def _update(parts: TrainParts, rate: float) -> None:
    """Change the weights; under fp16 only where no gradient overflowed, and adapt the scale."""
    for group in parts.optimizer.param_groups:
        group["lr"] = rate
    if parts.scaler is None:
        parts.optimizer.step()
    else:
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
