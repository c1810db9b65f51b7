"""How a step is divided into micro-batches: as typed, and again where a run goes on with others or other processes."""

from typing import Any

import torch

from llmtune import distributed
from llmtune.data.plan import PlanSettings, divide
from llmtune.errors import RunError
from llmtune.logs import say
from llmtune.stages.context import RunContext

_ACCUMULATION = "gradient_accumulation_steps"
_PARTS = ("micro_batch_size", _ACCUMULATION, "num_processes")


def plan_settings(context: RunContext, *, packed: bool) -> PlanSettings:
    """What the plan of the run's steps depends on; a run that goes on divided otherwise keeps the examples of each.

    Args:
        context: the run's.
        packed: whether examples are laid end to end.

    Raises:
        RunError: the run's steps can't be divided by that many processes.
    """
    config = context.config
    micro_batch_size, accumulation = _micro_batches(context)
    return PlanSettings(
        seed=config.seed,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation,
        num_processes=distributed.num_processes(),
        packing=packed,
        max_seq_len=config.data.max_seq_len,
        tokens_per_step=config.train.tokens_per_step,
    )


def division(settings: PlanSettings) -> dict[str, int]:
    """How a step is divided, for the record."""
    return {name: getattr(settings, name) for name in _parts(settings.tokens_per_step)}


def step_in_words(settings: PlanSettings) -> str:
    """How large a step is, and how it is divided."""
    if settings.tokens_per_step is None:
        return f"{settings.global_batch_size} examples ({_in_words(settings)})"
    return f"at most {settings.tokens_per_step:,} tokens ({_in_words(settings)})"


def record_other_division(context: RunContext, settings: PlanSettings, num_steps: int) -> None:
    """Record and say from which step on the run's steps are divided otherwise than before, where they are.

    Args:
        context: the run's; its choices are recorded.
        settings: the plan's.
        num_steps: steps done.
    """
    last, now = _last_division(context), division(settings)
    if now == {name: last[name] for name in now}:
        return
    before, after = last["num_processes"], now["num_processes"]
    kept = "its examples" if settings.tokens_per_step else f"its {settings.global_batch_size} examples"
    say(
        (f"processes: the run goes on with {after} instead of {before}; " if before != after else "micro-batches: ")
        + f"a step keeps {kept}: {_in_words(settings)}; CPU threads a process: {torch.get_num_threads()}"
    )
    earlier = context.manifest.section("choices").get("divisions") or [{"step": 1, **last}]
    changed = {**now, "num_threads": torch.get_num_threads()}
    made = [entry for entry in earlier if entry["step"] <= num_steps]
    divisions = [*made, {"step": num_steps + 1, **changed}]
    context.manifest.record("choices", {**changed, "divisions": divisions}, write=distributed.is_first())


def _micro_batches(context: RunContext) -> tuple[int, int]:
    """Examples of a micro-batch, and micro-batches a step and process."""
    train = context.config.train
    if train.tokens_per_step is not None or not context.manifest.section("choices"):
        return train.micro_batch_size, train.gradient_accumulation_steps
    last, count = _last_division(context), distributed.num_processes()
    size, accumulation, before = (last[name] for name in _PARTS)
    try:
        # The size that was typed is what fits in memory; a division in between may have lowered it.
        return divide(size * accumulation * before, count, train.micro_batch_size)
    except ValueError as error:
        raise RunError(f"hardware.num_processes={count}: the run began with {before}; its {error}") from error


def _last_division(context: RunContext) -> dict[str, Any]:
    """How the run's steps were divided last."""
    config, choices = context.config.train, context.manifest.section("choices")
    names = (*_parts(config.tokens_per_step), "num_threads")
    return {name: choices.get(name, getattr(config, name, 1)) for name in names}


def _parts(tokens_per_step: int | None) -> tuple[str, ...]:
    """What a step is divided by; one that is filled with tokens has as many micro-batches as they need."""
    return _PARTS if tokens_per_step is None else tuple(name for name in _PARTS if name != _ACCUMULATION)


def _in_words(settings: PlanSettings) -> str:
    size, processes = settings.micro_batch_size, f"processes {settings.num_processes}"
    if settings.tokens_per_step is None:
        return f"micro-batch {size} x accumulation {settings.gradient_accumulation_steps} x {processes}"
    room = f"{settings.micro_batch_tokens:,} tokens" if settings.packing else f"{size} examples"
    return f"micro-batches of at most {room}, {processes}"
