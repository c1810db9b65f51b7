"""Dropout on an adapter's input, with the random bits drawn in bulk on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llmtune.models.fast.dropout import Kept, kept_elements


class AdapterDropout(nn.Module):
    """Zeroes each element with probability `p` in training and scales the others by 1 / (1 - p).

    On a CPU `kept_elements` draws in bulk. Other devices use torch's own.

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
        kept = kept_elements(x, p)
        ctx.save_for_backward(kept.mask)
        ctx.factor = kept.factor
        return kept.apply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return Kept(mask, ctx.factor).apply(gradients[0]), None
