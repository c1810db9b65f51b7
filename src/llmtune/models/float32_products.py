"""Weights that stand in 16 bits and multiply in 32: exact sums without a second, larger copy of the model."""

from typing import Any

import torch
from torch import nn

_HALF = (torch.bfloat16, torch.float16)


def compute_in_float32(model: nn.Module) -> None:
    """Let each module turn its own 16-bit weights into float32 for as long as its forward pass takes.

    The results are those of the model loaded in float32, bit for bit, since every 16-bit value is a float32 value.
    Memory rises by the largest single module. For inference only.

    Raises:
        ValueError: the model has buffers in 16 bits; in float32 they would hold other values.
    """
    if has_narrow_buffers(model):
        raise ValueError(f"{type(model).__name__} has buffers in 16 bits")
    for module in model.modules():
        if any(parameter.dtype in _HALF for parameter in module.parameters(recurse=False)):
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(_narrow, always_call=True)


def has_narrow_buffers(model: nn.Module) -> bool:
    """Whether a model computed constants in 16 bits as it was loaded, such as Gemma's scale of the embeddings."""
    return any(buffer.dtype in _HALF for buffer in model.buffers())


def _widen(module: nn.Module, inputs: Any) -> None:
    del inputs
    kept = {name: weight.data for name, weight in module.named_parameters(recurse=False) if weight.dtype in _HALF}
    object.__setattr__(module, "_narrow_weights", kept)  # not a module's attribute: nothing saves or moves it
    for name, data in kept.items():
        getattr(module, name).data = data.float()


def _narrow(module: nn.Module, inputs: Any, output: Any) -> None:
    del inputs, output
    kept: dict[str, torch.Tensor] = module.__dict__.pop("_narrow_weights", {})
    for name, data in kept.items():
        getattr(module, name).data = data
