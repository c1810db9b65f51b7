"""`hardware`: on what a run computes."""

from typing import Literal

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, PositiveFloat, PositiveInt


@dataclass(config=STRICT, frozen=True, kw_only=True)
class HardwareConfig:
    """Devices and processes."""

    kind: Literal["auto", "cpu", "single_gpu", "ddp"] = "auto"
    """`auto` takes every visible GPU, else the CPU; `ddp` runs a copy of the model in each of several processes."""
    num_processes: PositiveInt | None = None
    """Processes for `ddp`; null is one a GPU."""
    num_threads: PositiveInt | None = None
    """CPU threads a process; null shares the machine's cores between the processes."""
    peer_timeout_seconds: PositiveFloat = 1800.0
    """Seconds that one of several processes may be silent, or keep the others waiting within a step, before all end."""
