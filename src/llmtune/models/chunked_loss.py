"""Cross-entropy of final hidden states, a chunk of positions at a time, so that no one holds all their logits."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from llmtune.models.attention import underlying_model
from llmtune.models.fast.kernels import kernels_for
from llmtune.models.hooks import is_hooked
from llmtune.models.token_rows import TrainedRows, unwrapped

CHUNK_ELEMENTS = 1 << 23
"""Logits of one chunk at most on a CPU: 32 MiB in float32."""
_TIMES_ON_GPU = 32
"""A GPU takes larger chunks for the same speed."""
_BLOCK = 4096
"""Tokens of the vocabulary whose weights' gradient a CPU takes at once where it is rounded before it is added."""


@dataclass(frozen=True)
class OutputHead:
    """What turns a final hidden state into logits: linear, then a factor, then a soft cap."""

    weight: torch.Tensor
    """[V, D]."""
    bias: torch.Tensor | None
    """[V]."""
    scale: float = 1.0
    """What the logits are multiplied by."""
    softcap: float | None = None
    """c in c × tanh(logits / c), after the factor; None leaves them."""
    trained: TrainedRows | None = None
    """Rows that train in the place of some of a frozen weight's."""

    @property
    def trains(self) -> bool:
        """Whether its weight or bias wants a gradient."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def logits(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, of_rows: torch.Tensor | None
    ) -> torch.Tensor:
        """[N, V] of hidden states [N, D], in their type; weight and bias are this head's in that type.

        `of_rows` [N, n] are the products with the trained rows.
        """
        logits = F.linear(hidden, weight, bias)
        if self.trained is not None and of_rows is not None:
            logits = logits.index_copy_(1, self.trained.ids, of_rows)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float | None:
        """How logits [N, V] follow the linear layer's output: a factor for all or each of them; None where it is 1."""
        if self.softcap is not None:
            return (1 - (logits / self.softcap).square_()).mul_(self.scale)
        return None if self.scale == 1.0 else self.scale


def output_head(model: nn.Module) -> OutputHead | str:
    """The head of a causal language model; in words why it has to compute its logits itself where that is so."""
    inner = underlying_model(model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return "a data-parallel wrapper has to see the whole forward pass"
    if not isinstance(inner, PreTrainedModel) or inner.base_model is inner:
        return f"{type(inner).__name__} has no decoder that can be called without its head"
    whole_head: Any = inner.get_output_embeddings()
    head, trained = unwrapped(whole_head)
    if type(head) is not nn.Linear:
        return f"its output head is a {type(head).__name__}, not a plain linear layer"
    if type(head.weight) is not nn.Parameter:
        return f"its output head's weight is a {type(head.weight).__name__}, not a plain tensor"
    if any(is_hooked(module) for module in (whole_head, head, inner)):
        return "a hook has to see the whole forward pass"
    config: Any = inner.config.get_text_config()
    return OutputHead(
        weight=head.weight,
        bias=head.bias,
        scale=float(getattr(inner, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
        trained=trained,
    )


@torch.no_grad()
def chunked_cross_entropy(hidden: torch.Tensor, head: OutputHead, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each position, the logits of one chunk at a time; for their gradient there is the sum.

    Products are taken in autocast's type where it is on; losses in float32 at least.

    Args:
        hidden: [N, D], N at least 1.
        head: of V tokens.
        targets: [N], each in 0 to V - 1.

    Returns:
        [N] in nats, float32 (float64 for float64 hidden states), without a gradient.
    """
    hidden, of_rows = _products_of_rows(hidden, head)
    parts = []
    with torch.autocast(hidden.device.type, enabled=False):
        weight, bias = _in_type(head, hidden.dtype)
        for span in _spans(targets, head):
            logits = head.logits(hidden[span], weight, bias, _part(of_rows, span))
            parts.append(F.cross_entropy(logits.to(_wide(logits.dtype)), targets[span], reduction="none"))
    return torch.cat(parts)


def chunked_cross_entropy_sum(hidden: torch.Tensor, head: OutputHead, targets: torch.Tensor) -> torch.Tensor:
    """The sum of all positions' cross-entropy, the logits of one chunk at a time and once alone.

    Every loss of a sum has the same gradient from above, a factor: so the gradients of hidden states, weight, bias and
    trained rows are computed beside the losses, and the backward pass multiplies them by it. Products are taken in
    autocast's type where it is on; losses in float32 at least, as the head's gradient is added up over chunks.

    Args:
        hidden: [N, D], N at least 1.
        head: of V tokens.
        targets: [N], each in 0 to V - 1.

    Returns:
        A scalar in nats, float64; its backward pass runs once.
    """
    typed, of_rows = _products_of_rows(hidden, head)
    learnt = [tensor for tensor in (typed, head.weight, head.bias, of_rows) if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learnt):
        return _ChunkedSum.apply(typed, head.weight, head.bias, of_rows, (targets, head))  # pyright: ignore[reportReturnType]
    return chunked_cross_entropy(hidden, head, targets).sum(dtype=torch.float64)


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        of_rows: torch.Tensor | None,
        wanted: tuple[torch.Tensor, OutputHead],
    ) -> torch.Tensor:
        targets, head = wanted
        inputs = (hidden, weight, bias, of_rows)
        dtypes = (hidden.dtype, _wide(hidden.dtype), _wide(hidden.dtype), hidden.dtype)
        sums = [
            torch.zeros_like(tensor, dtype=dtype) if tensor is not None and learnt else None
            for tensor, dtype, learnt in zip(inputs, dtypes, ctx.needs_input_grad[:4], strict=True)
        ]
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            typed_weight, typed_bias = _in_type(head, hidden.dtype)
            for span in _spans(targets, head):
                used = (hidden[span], typed_weight, typed_bias, _part(of_rows, span))
                into = (_part(sums[0], span), sums[1], sums[2], _part(sums[3], span))
                total += _add_gradients(head, used, targets[span], into).sum(dtype=torch.float64)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        ctx.save_for_backward(*sums)
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        given = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if saved is None else _times(saved, gradients[0]).to(dtype) for saved, dtype in given), None


def _times(saved: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The product, in the memory of `saved`, as a head's gradient is large; rounded to its type once."""
    return torch.mul(saved, factor.to(_wide(saved.dtype)).reshape(1), out=saved)  # a scalar would be rounded first


_Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Hidden states, weight, bias, and products with the trained rows."""
_Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
"""Of each of them, in that order; None where none is wanted."""


def _add_gradients(head: OutputHead, inputs: _Inputs, targets: torch.Tensor, into: _Gradients) -> torch.Tensor:
    """Losses [N] of a chunk; the gradients of their sum are added to those of weight and bias, and set elsewhere."""
    hidden, weight, _, _ = inputs
    of_hidden, of_weight, of_bias, of_rows = into
    logits = head.logits(*inputs)
    slope = head.slope(logits)
    losses, gradient = kernels_for(logits.device, logits.dtype).cross_entropy_with_gradient(logits, targets)
    if slope is not None:
        gradient.mul_(slope)
    if head.trained is not None:
        if of_rows is not None:
            of_rows.copy_(gradient[:, head.trained.ids])
        gradient.index_fill_(1, head.trained.ids, 0.0)
    if of_hidden is not None:
        torch.mm(gradient, weight, out=of_hidden)
    if of_weight is not None:
        _add_product(of_weight, gradient, hidden)
    if of_bias is not None:
        of_bias.add_(gradient.sum(0, dtype=of_bias.dtype))
    return losses


def _add_product(total: torch.Tensor, gradient: torch.Tensor, hidden: torch.Tensor) -> None:
    """Add gradientᵀ × hidden, [V, D], without rounding the product to a type that is coarser than the sum's."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), hidden)
    elif total.is_cuda:
        torch.addmm(total, gradient.t(), hidden, out_dtype=total.dtype, out=total)
    else:  # a CPU has no such product: what is rounded first stays small, and in its cache
        for into, part in zip(total.split(_BLOCK), gradient.split(_BLOCK, dim=1), strict=True):
            into.add_(part.t() @ hidden)


def _products_of_rows(hidden: torch.Tensor, head: OutputHead) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hidden states in the type that products are taken in, and their products with the trained rows, [N, n]."""
    kind = hidden.device.type
    hidden = hidden.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype)
    if head.trained is None:
        return hidden, None
    assert not head.trains, "rows train in the place of a frozen weight's"
    return hidden, F.linear(hidden, head.trained.rows.to(head.weight.dtype).to(hidden.dtype))


def _part(of_rows: torch.Tensor | None, span: slice) -> torch.Tensor | None:
    return None if of_rows is None else of_rows[span]


def _spans(targets: torch.Tensor, head: OutputHead) -> Iterator[slice]:
    """The chunks of positions, one after another, of one size."""
    times = 1 if targets.device.type == "cpu" else _TIMES_ON_GPU
    num_positions = targets.numel()
    num_chunks = math.ceil(num_positions / max(1, times * CHUNK_ELEMENTS // head.weight.shape[0]))
    bounds = [num_positions * number // num_chunks for number in range(num_chunks + 1)]
    return itertools.starmap(slice, itertools.pairwise(bounds))


def _in_type(head: OutputHead, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    return head.weight.detach().to(dtype), None if head.bias is None else head.bias.detach().to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
