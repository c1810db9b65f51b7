"""The learning rate of each step, in closed form: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass

from llmtune.config.train import ScheduleName


@dataclass(frozen=True)
class ScheduleSettings:
    """The shape of the learning rate over a run."""

    name: ScheduleName
    """Shape after warm-up."""
    peak: float
    """Highest learning rate."""
    warmup_steps: int
    """Steps below the peak at the start."""
    total_steps: int
    """Steps of the run."""
    num_cycles: int = 2
    """Cycles of `cosine_with_restarts`."""


def warmup_steps_or_default(warmup_steps: int | None, total_steps: int) -> int:
    """Warm-up as typed, or a tenth of the run and at most 100 steps where it is None."""
    return min(100, total_steps // 10) if warmup_steps is None else warmup_steps


def learning_rate(step: int, settings: ScheduleSettings) -> float:
    """The learning rate of the update number `step`, counted from 0.

    It rises over `warmup_steps` + 1 equal parts, so that no update is wasted at 0 and update number `warmup_steps` is
    the first at the peak. From there all shapes but `constant` fall to 0, which they would reach at `total_steps`, one
    step after the last. The shapes are those of transformers' schedulers.
    """
    if step < settings.warmup_steps:
        return settings.peak * (step + 1) / (settings.warmup_steps + 1)
    if settings.name == "constant":
        return settings.peak
    done = (step - settings.warmup_steps) / max(1, settings.total_steps - settings.warmup_steps)
    if done >= 1:
        return 0.0
    if settings.name == "linear":
        return settings.peak * (1 - done)
    if settings.name == "cosine_with_restarts":
        done = (done * settings.num_cycles) % 1
    return settings.peak * 0.5 * (1 + math.cos(math.pi * done))
