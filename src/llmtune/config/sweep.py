"""`sweep`: how the jobs of a multirun are run."""

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, PositiveFloat


@dataclass(config=STRICT, frozen=True, kw_only=True)
class SweepConfig:
    """A sweep is a process a job, one after another."""

    job_timeout_minutes: PositiveFloat | None = None
    """Minutes after which a job is stopped and counted as failed; null is no limit."""
