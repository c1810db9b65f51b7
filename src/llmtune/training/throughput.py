"""Speed in tokens and peak memory."""

import contextlib
import resource
from pathlib import Path

import torch

NUM_WARMUP_STEPS = 2
"""Steps left out of every speed: allocation, compilation and cold caches are in them."""

_GIB = 2**30
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""Linux: writing 5 to the first sets the peak in the second, VmHWM, to the memory resident now (proc(5))."""


class Throughput:
    """Tokens per second of one device, the process's first steps left out.

    Args:
        num_processes: devices that share the tokens.
    """

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self._num_steps = 0
        self._num_tokens = 0
        self._seconds = 0.0

    def add(self, num_tokens: int, seconds: float) -> float | None:
        """Count a step.

        Args:
            num_tokens: tokens of the whole step, over all processes.
            seconds: its wall time.

        Returns:
            The step's tokens per second and device; None for the first steps.
        """
        self._num_steps += 1
        if self._num_steps <= NUM_WARMUP_STEPS:
            return None
        self._num_tokens += num_tokens
        self._seconds += seconds
        return num_tokens / seconds / self._num_processes

    @property
    def tokens_per_second_per_device(self) -> float | None:
        """The mean over all counted steps; None while there is none."""
        return self._num_tokens / self._seconds / self._num_processes if self._seconds else None


def reset_peak_memory(device: torch.device) -> None:
    """Forget what was held before, where the system can: what loading and preparing took is not training's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")


def peak_memory_gib(device: torch.device) -> float:
    """The most memory held since the last reset: allocated by torch on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB
