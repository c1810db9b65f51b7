"""Sums and agreements over a run's processes; with one process each of them changes nothing."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llmtune.process_group import exchange, host_group


def several_processes() -> bool:
    """Whether a process group of more than one process is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of every process's `tensor`."""
    if several_processes():
        tensor = tensor.clone()
        _reduce(tensor)
    return tensor


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the processes; one that is missing in some of them counts as zeros there.

    A parameter that has none in any process is left without, as it is with one: zeros would make its weight decay. One
    reduction a dtype over all gradients laid end to end, so every process ends with the same bits.
    """
    if not several_processes():
        return
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for parameter in _with_gradient(parameters):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_dtype[parameter.grad.dtype].append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        _reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def value_of_first(value: float, device: torch.device) -> float:
    """The first process's `value`, in every process, so that all of them decide alike; they wait while it works."""
    if not several_processes():
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    exchange(lambda: dist.broadcast(tensor, src=0, async_op=True), patient=True)
    return float(tensor)


def most_over_ranks(value: float, device: torch.device) -> float:
    """The largest `value` of all processes, in every process."""
    if not several_processes():
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    _reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def wait_for_all() -> None:
    """Return once every process has come here, however long the first works on."""
    if several_processes():
        exchange(lambda: dist.barrier(async_op=True), patient=True)


def _with_gradient(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Those that have a gradient in any process. Which it has each host knows, so nothing waits for a device."""
    flags = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
    exchange(lambda: dist.all_reduce(flags, dist.ReduceOp.MAX, group=host_group(), async_op=True), on_host=True)
    return [parameter for parameter, flag in zip(parameters, flags.tolist(), strict=True) if flag]


def _reduce(tensor: torch.Tensor, how: Any = dist.ReduceOp.SUM) -> None:
    """Replace the tensor by what all processes' come to."""
    exchange(lambda: dist.all_reduce(tensor, how, async_op=True))
