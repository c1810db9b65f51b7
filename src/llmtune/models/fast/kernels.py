"""The pieces of a block as they are called: functions of torch on a CPU, Triton's kernels on a GPU."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch

from llmtune.logs import warn
from llmtune.models.cross_entropy import cross_entropy_with_gradient
from llmtune.models.fast import pieces


@dataclass(frozen=True)
class Kernels:
    """One way to compute the pieces of a model; see `pieces` and `cross_entropy` for what each does."""

    normalise: Callable[..., Any] = pieces.normalise
    add_and_normalise: Callable[..., Any] = pieces.add_and_normalise
    normalise_backward: Callable[..., Any] = pieces.normalise_backward
    split_heads: Callable[..., Any] = pieces.split_heads
    split_heads_backward: Callable[..., Any] = pieces.split_heads_backward
    gate: Callable[..., Any] = pieces.gate
    gate_backward: Callable[..., Any] = pieces.gate_backward
    cross_entropy_with_gradient: Callable[..., Any] = cross_entropy_with_gradient


PLAIN = Kernels()


@cache
def kernels_for(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The fastest pieces that a device has for products of a type; float64 is computed by torch's functions alone."""
    if device.type == "cuda" and dtype != torch.float64 and importlib.util.find_spec("triton") is not None:
        return _on_gpu()
    return PLAIN


@cache
def _on_gpu() -> Kernels:
    try:
        from llmtune.models.fast import gpu_kernels  # Triton is there with GPUs only

        kernels = Kernels(**{field.name: getattr(gpu_kernels, field.name) for field in fields(Kernels)})
        row = torch.ones(1, 16, device="cuda")
        kernels.normalise(row, pieces.Norm(row[0], 1e-6, 0.0), torch.float32)
    except Exception as error:  # whatever its compiler, the C compiler that it calls and the driver raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        warn(f"Triton's kernels can't be made here, torch's own are slower: {reason[0]}")
        return PLAIN
    return kernels
