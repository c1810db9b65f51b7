"""`sweep`: how the jobs of a multirun are run."""

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, PositiveFloat, PositiveInt


@dataclass(config=STRICT, frozen=True, kw_only=True)
class SweepConfig:
    """A sweep is a process a job: a GPU each where there are several, else one after another."""

    job_timeout_minutes: PositiveFloat | None = None
    """Minutes after which a job is stopped and counted as failed; null is no limit."""
    num_parallel: PositiveInt | None = None
    """Jobs at once; null is a job a GPU, and one on a CPU. They share the GPUs, or the CPU's cores: with 1, a job of
    `hardware=auto` takes every GPU."""
