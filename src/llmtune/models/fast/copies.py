"""Copies of weights in the type in which they multiply, kept equal to the weights."""

import torch
from torch import nn


class Copies:
    """What a model holds in one type and multiplies in another; and what was moved, which must stay where it is."""

    def __init__(self) -> None:
        self._pairs: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._versions: list[int] = []
        self._moved: list[tuple[nn.Parameter, int]] = []

    def add(self, source: nn.Parameter, copy: torch.Tensor) -> None:
        """Keep `copy` equal to `source`, from the next `refresh` on."""
        self._pairs.append((source, copy))

    def add_moved(self, parameter: nn.Parameter) -> None:
        """Note that a parameter's memory is part of a larger block."""
        self._moved.append((parameter, parameter.data_ptr()))

    @property
    def in_place(self) -> bool:
        """Whether every moved parameter still has its memory where it was moved to."""
        return all(parameter.data_ptr() == place for parameter, place in self._moved)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy what trains, and all of it if a frozen weight was written since.

        Autograd counts writes to a frozen weight. Some optimizers write to what trains behind its back, so that is
        copied in every pass.
        """
        versions = [source._version for source, _ in self._pairs if not source.requires_grad]
        is_first = versions != self._versions or not self._pairs
        pairs = self._pairs if is_first else [pair for pair in self._pairs if pair[0].requires_grad]
        self._versions = versions
        if pairs:
            torch._foreach_copy_([copy for _, copy in pairs], [source.detach() for source, _ in pairs])
