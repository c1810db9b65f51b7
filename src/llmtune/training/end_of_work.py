"""Whether a device has done all that it was given, asked without waiting for it."""

from typing import Protocol

import torch


class EndOfWork(Protocol):
    """A mark in the work that a device is given, which it does in order."""

    def mark(self) -> None:
        """Set it behind all that the device has been given so far; the mark before is forgotten."""
        ...

    def is_reached(self) -> bool:
        """Whether the device has done all before the mark; answers at once."""
        ...


def end_of_work(device: torch.device) -> EndOfWork | None:
    """A mark for the device; None on a CPU, where work is done once it is given."""
    return _CudaMark() if device.type == "cuda" else None


class _CudaMark:
    def __init__(self) -> None:
        self._event = torch.cuda.Event()

    def mark(self) -> None:
        self._event.record()

    def is_reached(self) -> bool:
        return self._event.query()
