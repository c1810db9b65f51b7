"""Dropout on the input of adapters: which elements are kept, drawn in bulk."""

from typing import NamedTuple

import numpy as np
import torch

_LEVELS = 1 << 16


class Kept(NamedTuple):
    """Which elements of a tensor are kept, and what they are multiplied by."""

    mask: torch.Tensor
    """Of the tensor's shape: bool; on a CPU 0 or `factor` in the tensor's type, which multiplies in one pass there."""
    factor: float
    """1 / probability of being kept."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """X with the others set to zero, in its type."""
        if self.mask.dtype == torch.bool:
            return torch.ops.aten.native_dropout_backward(x, self.mask, self.factor)
        return x * self.mask

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add `apply` of x to a tensor in its place."""
        if self.mask.dtype == torch.bool:
            return total.add_(self.apply(x))
        return total.addcmul_(x, self.mask)


def kept_elements(x: torch.Tensor, p: float) -> Kept:
    """Draw which elements of x are kept, each with probability 1 - p, from torch's stream of its device.

    torch draws on a CPU bit by bit, which takes a quarter of a LoRA step there. NumPy draws 16 bits an element at once,
    from a seed that torch's stream gives; `p` is then met within 1 / 131072.

    Args:
        x: any tensor.
        p: probability of being dropped, at least 0 and below 1.
    """
    if x.device.type != "cpu":
        return Kept(torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p), 1 / (1 - p))
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
    threshold = round(p * _LEVELS)
    factor = _LEVELS / (_LEVELS - threshold)
    ones = torch.from_numpy((bits >= threshold).view(np.uint8)).view(x.shape)
    return Kept(ones.to(x.dtype).mul_(factor), factor)
