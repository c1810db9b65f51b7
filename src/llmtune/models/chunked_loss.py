"""Cross-entropy of final hidden states, a chunk of positions at a time, so that no one holds all their logits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from llmtune.models.attention import underlying_model
from llmtune.models.token_rows import TrainedRows, unwrapped

CHUNK_ELEMENTS = 1 << 23
"""Logits of one chunk at most on a CPU: 32 MiB in float32."""
_TIMES_ON_GPU = 4
"""A GPU takes larger chunks for the same speed."""


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
    if any(_is_hooked(module) for module in (whole_head, head, inner)):
        return "a hook has to see the whole forward pass"
    config: Any = inner.config.get_text_config()
    return OutputHead(
        weight=head.weight,
        bias=head.bias,
        scale=float(getattr(inner, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
        trained=trained,
    )


def final_hidden_states(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """[B, T, D]: what the output head would be given; `inputs` as the model itself takes them."""
    return underlying_model(model).base_model(**inputs, use_cache=False).last_hidden_state


def chunked_cross_entropy(hidden: torch.Tensor, head: OutputHead, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each position, the logits of one chunk at a time, in the forward and in the backward pass.

    Products are taken in autocast's type where it is on; losses in float32 at least. The head's gradient is added up
    over chunks in float32 at least. A frozen head needs no second product: the gradients of the hidden states, and of
    the products with trained rows, are computed beside the loss.

    Args:
        hidden: [N, D].
        head: of V tokens.
        targets: [N], each in 0 to V - 1.

    Returns:
        [N] in nats, float32 (float64 for float64 hidden states); differentiable once.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    hidden = hidden.to(dtype)
    of_rows = None
    if head.trained is not None:
        assert not head.trains, "rows train in the place of a frozen weight's"
        of_rows = F.linear(hidden, head.trained.rows.to(head.weight.dtype).to(dtype))
    differentiable = hidden.requires_grad or head.trains or (of_rows is not None and of_rows.requires_grad)
    if torch.is_grad_enabled() and differentiable:
        return _ChunkedCrossEntropy.apply(hidden, head.weight, head.bias, of_rows, (targets, head))  # pyright: ignore[reportReturnType]
    with torch.autocast(kind, enabled=False):
        weight, bias = _in_type(head, dtype)
        parts = [
            _losses(head, (hidden[span], weight, bias, _part(of_rows, span)), targets[span])
            for span in _spans(targets, head)
        ]
    return torch.cat(parts)


class _ChunkedCrossEntropy(torch.autograd.Function):
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
        ctx.head = head
        losses = torch.zeros(targets.numel(), dtype=_wide(hidden.dtype), device=hidden.device)
        frozen = not head.trains
        inputs = [tensor for tensor in (hidden, of_rows) if tensor is not None]
        gradients = [torch.zeros_like(tensor) for tensor in inputs] if frozen else []
        with torch.autocast(hidden.device.type, enabled=False):
            typed_weight, typed_bias = _in_type(head, hidden.dtype)
            for span in _spans(targets, head):
                with torch.set_grad_enabled(frozen):
                    leaves: list[Any] = [tensor[span].detach().requires_grad_(frozen) for tensor in inputs]
                    used = (leaves[0], typed_weight, typed_bias, leaves[1] if len(leaves) > 1 else None)
                    part = _losses(head, used, targets[span])
                found = torch.autograd.grad(part, leaves, torch.ones_like(part)) if frozen else ()
                for gradient, part_of_it in zip(gradients, found, strict=True):
                    gradient[span] = part_of_it
                losses[span] = part.detach()
        ctx.save_for_backward(*(gradients if frozen else (hidden, weight, bias, targets)))
        return losses

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (upstream,) = gradients
        if ctx.head.trains:
            return *_recomputed(ctx, upstream), None, None
        of_hidden, *of_rows = [(saved * upstream[:, None]).to(saved.dtype) for saved in ctx.saved_tensors]
        return of_hidden, None, None, of_rows[0] if of_rows else None, None


def _recomputed(ctx: Any, upstream: torch.Tensor) -> list[torch.Tensor | None]:
    """Gradients of hidden states, weight and bias, where wanted, out of logits that are computed again."""
    *inputs, targets = ctx.saved_tensors
    hidden, head, wanted = inputs[0], ctx.head, ctx.needs_input_grad[:3]
    sums: list[Any] = [None if like is None else torch.zeros_like(like, dtype=_wide(like.dtype)) for like in inputs]
    with torch.autocast(hidden.device.type, enabled=False):
        weight, bias = _in_type(head, hidden.dtype)
        for span in _spans(targets, head):
            leaves: list[Any] = [hidden[span], weight, bias]
            leaves = [leaf if leaf is None else leaf.detach().requires_grad_() for leaf in leaves]
            with torch.enable_grad():
                part = _losses(head, (leaves[0], leaves[1], leaves[2], None), targets[span])
            asked = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
            totals = [sums[0][span], *sums[1:]]
            asked_totals = [total for total, want in zip(totals, wanted, strict=True) if want]
            for total, part_of_it in zip(asked_totals, torch.autograd.grad(part, asked, upstream[span]), strict=True):
                total.add_(part_of_it)
    typed = zip(sums, inputs, wanted, strict=True)
    return [total.to(like.dtype) if want else None for total, like, want in typed]


_Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Hidden states, weight, bias, and products with the trained rows."""


def _losses(head: OutputHead, inputs: _Inputs, targets: torch.Tensor) -> torch.Tensor:
    logits = head.logits(*inputs)
    return F.cross_entropy(logits.to(_wide(logits.dtype)), targets, reduction="none")


def _part(of_rows: torch.Tensor | None, span: slice) -> torch.Tensor | None:
    return None if of_rows is None else of_rows[span]


def _spans(targets: torch.Tensor, head: OutputHead) -> Iterator[slice]:
    """The chunks of positions, one after another."""
    times = 1 if targets.device.type == "cpu" else _TIMES_ON_GPU
    rows = max(1, times * CHUNK_ELEMENTS // head.weight.shape[0])
    for start in range(0, targets.numel(), rows):
        yield slice(start, min(start + rows, targets.numel()))


def _in_type(head: OutputHead, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    return head.weight.detach().to(dtype), None if head.bias is None else head.bias.detach().to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _is_hooked(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" in vars(module) or any(getattr(module, name, None) for name in hooks)
