"""Dropout on an adapter's input, with the random bits drawn in bulk on a CPU."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

_LEVELS = 1 << 16


class AdapterDropout(nn.Module):
    """Zeroes each element with probability `p` in training and scales the others by 1 / (1 - p).

    torch draws dropout's bits on a CPU one by one, which takes a quarter of a LoRA step there (seven adapters a layer).
    Here NumPy draws 16 bits an element at once, from a seed that torch's stream gives, and one byte an element is kept
    for the backward pass instead of four. `p` is met within 1 / 131072. Other devices use torch's own.

    Args:
        p: probability of zero, at least 0 and below 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input with elements dropped; unchanged in evaluation mode."""
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p, training=True)
        return _Dropped.apply(x, self.p)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"p={self.p}"


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        seed = int(torch.randint(2**63 - 1, ()))
        bits = np.random.Generator(np.random.SFC64(seed)).bytes(2 * x.numel())
        threshold = round(p * _LEVELS)
        kept = torch.from_numpy(np.frombuffer(bits, dtype="<u2") >= threshold).view(x.shape)
        ctx.save_for_backward(kept)
        ctx.scale = _LEVELS / (_LEVELS - threshold)
        return kept.to(x.dtype).mul_(ctx.scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (kept,) = ctx.saved_tensors
        return kept.to(gradients[0].dtype).mul_(ctx.scale).mul_(gradients[0]), None
