"""One block of a Llama-like decoder with its gradient written out: what lies before attention, and what lies after.

What the backward pass needs and can be had again by reading a tensor once (norms, the gated product) isn't kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from llmtune.models.fast.dropout import Kept, kept_elements
from llmtune.models.fast.kernels import Kernels
from llmtune.models.fast.linear import Backward, LinearGroup
from llmtune.models.fast.pieces import HeadShape, Norm, Rotary


@dataclass(frozen=True)
class NormLayer:
    """A norm of the model."""

    weight: nn.Parameter
    epsilon: float
    offset: float
    """What is added to the weight."""

    @property
    def values(self) -> Norm:
        """As the kernels take it."""
        return Norm(self.weight.detach(), self.epsilon, self.offset)

    @property
    def trained(self) -> list[nn.Parameter]:
        """Its weight, where that trains."""
        return [self.weight] if self.weight.requires_grad else []


@dataclass(frozen=True)
class Block:
    """The parts of one block, and how they go together."""

    first_norm: NormLayer
    qkv: LinearGroup
    head_norms: tuple[NormLayer, ...]
    """Of each head's queries, and of its keys; empty where there are none."""
    output: LinearGroup
    second_norm: NormLayer
    gate_up: LinearGroup
    down: LinearGroup
    heads: HeadShape
    activation: str
    """`silu` or `gelu_tanh`."""
    attention: nn.Module
    """The model's own attention layer, which tells the attention implementation about itself."""

    @property
    def groups(self) -> tuple[LinearGroup, ...]:
        """All of its linear layers."""
        return self.qkv, self.output, self.gate_up, self.down

    @property
    def trained_before(self) -> list[nn.Parameter]:
        """What trains before attention, in the order in which its gradients come back."""
        heads = [parameter for norm in self.head_norms for parameter in norm.trained]
        return [*self.first_norm.trained, *heads, *self.qkv.trained]

    @property
    def trained_after(self) -> list[nn.Parameter]:
        """What trains after attention, likewise."""
        groups = [*self.output.trained, *self.gate_up.trained, *self.down.trained]
        return [*self.second_norm.trained, *groups]


Attend = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From a layer and its queries, keys and values [T, heads, head size] to [T, heads × head size]."""


class Way(NamedTuple):
    """How one pass is computed."""

    kernels: Kernels
    dtype: torch.dtype
    """Of the products."""
    drops: bool
    """Whether the adapters' dropout is on."""
    keeps_gate: bool
    """Whether the widest activations are kept for the backward pass; they are computed again otherwise."""


def run_block(x: torch.Tensor, block: Block, attend: Attend, rotary: Rotary, way: Way) -> torch.Tensor:
    """One block over a packed row.

    Args:
        x: [T, D], in the residual stream's type.
        block: whose.
        attend: attention within each example.
        rotary: the positions.
        way: how.

    Returns:
        [T, D], in x's type.
    """
    before: Any = _Before.apply(x, block, rotary, way, *block.trained_before)
    query, key, value, x = before
    attended = attend(block.attention, query, key, value)
    after: Any = _After.apply(x, attended, block, way, *block.trained_after)
    return after


class _Before(torch.autograd.Function):
    """Norm, projections and heads; x goes through, so that its two gradients meet here."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, block: Block, rotary: Rotary, way: Way, *trained: nn.Parameter) -> Any:
        del trained  # autograd has to see them
        normed, scale = way.kernels.normalise(x, block.first_norm.values, way.dtype)
        kept = _draw(normed, block.qkv, way)
        projected, inner = block.qkv.forward(normed, _dropped(normed, kept))
        norms = tuple(norm.values for norm in block.head_norms) or None
        query, key, value, scales = way.kernels.split_heads(projected, block.heads, rotary, norms)
        ctx.block, ctx.way = block, way
        _save(ctx, [kept], x, scale, *rotary, inner, projected if norms else None, *scales)
        return query, key, value, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        block, way = ctx.block, ctx.way
        (kept,), (x, scale, cos, sin, inner, projected, *scales) = _saved(ctx, 1)
        *of_heads, residual = upstream
        norms = tuple(
            (norm.values, scale_of_head, norm.weight.requires_grad)
            for norm, scale_of_head in zip(block.head_norms, scales, strict=True)
        )
        of_projected, of_head_norms = way.kernels.split_heads_backward(
            tuple(of_heads), projected, Rotary(cos, sin), norms
        )
        back = block.qkv.backward(of_projected, dropped=kept is not None)
        through = way.kernels.normalise_backward(
            _joined(back, kept), x, scale, block.first_norm.values, residual, block.first_norm.weight.requires_grad
        )
        seen = _seen(through.result, kept)
        of_weights = [through.of_weight, *of_head_norms]
        return (
            through.of_input,
            None,
            None,
            None,
            *_typed(of_weights, block.first_norm, *block.head_norms),
            *block.qkv.parameter_gradients(of_projected, seen, inner, back.of_inner),
        )


class _After(torch.autograd.Function):
    """Output projection, norm and gated MLP, each part added to x."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, attended: torch.Tensor, block: Block, way: Way, *trained: nn.Parameter
    ) -> Any:
        del trained  # autograd has to see them
        kept_output = _draw(attended, block.output, way)
        delta, inner_output = block.output.forward(attended, _dropped(attended, kept_output))
        x, normed, scale = way.kernels.add_and_normalise(x, delta, block.second_norm.values, way.dtype)
        kept_gate = _draw(normed, block.gate_up, way)
        gate_up, inner_gate = block.gate_up.forward(normed, _dropped(normed, kept_gate))
        gated = way.kernels.gate(gate_up, block.activation)
        kept_down = _draw(gated, block.down, way)
        delta, inner_down = block.down.forward(gated, _dropped(gated, kept_down))
        ctx.block, ctx.way = block, way
        kept_rows = gate_up if way.keeps_gate else None
        _save(
            ctx,
            [kept_output, kept_gate, kept_down],
            *(x, scale, attended, kept_rows),
            *(inner_output, inner_gate, inner_down),
        )
        return x + delta.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        block, way = ctx.block, ctx.way
        (kept_output, kept_gate, kept_down), saved = _saved(ctx, 3)
        x, scale, attended, gate_up, inner_output, inner_gate, inner_down = saved
        if gate_up is None:
            normed = way.kernels.normalise(x, block.second_norm.values, way.dtype)[0]
            gate_up = block.gate_up.forward(normed, _dropped(normed, kept_gate))[0]
        of_result = upstream[0].to(way.dtype)
        down = block.down.backward(of_result, dropped=kept_down is not None)
        of_gate, gated = way.kernels.gate_backward(_joined(down, kept_down), gate_up, block.activation)
        of_down = block.down.parameter_gradients(of_result, _seen(gated, kept_down), inner_down, down.of_inner)

        gates = block.gate_up.backward(of_gate, dropped=kept_gate is not None)
        through = way.kernels.normalise_backward(
            _joined(gates, kept_gate),
            *(x, scale, block.second_norm.values),
            *(upstream[0], block.second_norm.weight.requires_grad),
        )
        seen = _seen(through.result, kept_gate)
        of_gate_up = block.gate_up.parameter_gradients(of_gate, seen, inner_gate, gates.of_inner)

        of_delta = through.of_input.to(way.dtype)
        output = block.output.backward(of_delta, dropped=kept_output is not None)
        seen = _seen(attended, kept_output)
        of_output = block.output.parameter_gradients(of_delta, seen, inner_output, output.of_inner)
        return (
            *(through.of_input, _joined(output, kept_output), None, None),
            *_typed([through.of_weight], block.second_norm),
            *(*of_output, *of_gate_up, *of_down),
        )


def _draw(x: torch.Tensor, group: LinearGroup, way: Way) -> Kept | None:
    return kept_elements(x, group.dropout) if way.drops and group.dropout else None


def _dropped(x: torch.Tensor, kept: Kept | None) -> torch.Tensor | None:
    return None if kept is None else kept.apply(x)


def _seen(x: torch.Tensor, kept: Kept | None) -> torch.Tensor:
    """The input as the adapters saw it."""
    return x if kept is None else kept.apply(x)


def _joined(back: Backward, kept: Kept | None) -> torch.Tensor:
    """The gradient of a group's input, through its weights and its adapters."""
    if kept is None or back.of_dropped is None:
        return back.of_input
    return kept.add_to(back.of_input, back.of_dropped)


def _typed(gradients: Sequence[torch.Tensor | None], *norms: NormLayer) -> list[torch.Tensor]:
    """Gradients of the norms that train, in their weights' types."""
    pairs = zip(gradients, norms, strict=True) if gradients else ()
    return [gradient.to(norm.weight.dtype) for gradient, norm in pairs if gradient is not None]


def _save(ctx: Any, drawn: Sequence[Kept | None], *tensors: torch.Tensor | None) -> None:
    ctx.factors = [kept and kept.factor for kept in drawn]
    ctx.save_for_backward(*(kept and kept.mask for kept in drawn), *tensors)


def _saved(ctx: Any, num_drawn: int) -> tuple[list[Kept | None], list[Any]]:
    """What `_save` kept."""
    saved = ctx.saved_tensors  # checkpointing gives them once
    masks, tensors = saved[:num_drawn], saved[num_drawn:]
    drawn = [None if mask is None else Kept(mask, factor) for mask, factor in zip(masks, ctx.factors, strict=True)]
    return drawn, list(tensors)
