"""Sums and agreements over a run's processes; with one process each of them changes nothing."""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


def several_processes() -> bool:
    """Whether a process group of more than one process is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of every process's `tensor`."""
    if several_processes():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the processes; a missing one counts as zeros.

    One reduction a dtype over all gradients laid end to end, so every process ends with the same bits.
    """
    if not several_processes():
        return
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_dtype[parameter.grad.dtype].append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def value_of_first(value: float, device: torch.device) -> float:
    """The first process's `value`, in every process, so that all of them decide alike."""
    if not several_processes():
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(tensor, src=0)
    return float(tensor)


def wait_for_all() -> None:
    """Return once every process has come here."""
    if several_processes():
        dist.barrier()
