"""What lies between the matrix products of a Llama block, forward and backward: functions of tensors alone.

They compute in float32 at least, in few passes over their tensors. `gpu_kernels` has the same as kernels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Norm(NamedTuple):
    """A root-mean-square norm (https://arxiv.org/abs/1910.07467)."""

    weight: torch.Tensor
    """[D]."""
    epsilon: float
    offset: float
    """What is added to the weight: 1 in Gemma, else 0."""


class NormGradient(NamedTuple):
    """What comes back through a norm."""

    of_input: torch.Tensor
    """[..., D], in the input's type."""
    result: torch.Tensor
    """[..., D]: what the norm gave, computed again."""
    of_weight: torch.Tensor | None
    """[D], float32 at least; None where it isn't wanted."""


class HeadShape(NamedTuple):
    """How a projection is cut into heads."""

    num_query: int
    num_key: int
    size: int


class Rotary(NamedTuple):
    """Positions as rotations: cosine and sine of each pair's angle, laid twice end to end."""

    cos: torch.Tensor
    """[T, 1, head size]."""
    sin: torch.Tensor
    """[T, 1, head size]."""


def normalise(x: torch.Tensor, norm: Norm, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm over the last dimension.

    Args:
        x: [..., D].
        norm: its weight and settings.
        dtype: of the result.

    Returns:
        [..., D] in `dtype`, and the reciprocal root mean square [..., 1], in float32 at least.
    """
    wide = _wide(x)
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = length.square_().div_(x.shape[-1]).add_(norm.epsilon).rsqrt_()
    return (wide * scale).mul_(_weight(norm, wide.dtype)).to(dtype), scale


def add_and_normalise(
    x: torch.Tensor, delta: torch.Tensor, norm: Norm, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """X + delta in x's type, and `normalise` of it."""
    total = x + delta.to(x.dtype)
    return total, *normalise(total, norm, dtype)


def normalise_backward(
    upstream: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor | None,
    wants_weight: bool,
) -> NormGradient:
    """Back through `normalise`.

    Args:
        upstream: gradient of the result, [..., D], in the result's type.
        x: the input.
        scale: as `normalise` gave it.
        norm: its weight and settings.
        residual: gradient that reaches the input on another way, added; None for none.
        wants_weight: whether the weight trains.
    """
    weight, wide = _weight(norm, scale.dtype), _wide(x)
    weighted = upstream.to(scale.dtype) * weight
    along = torch.linalg.vecdot(weighted, wide)[..., None].mul_(scale.pow(3)).div_(x.shape[-1])
    gradient = weighted * scale if residual is None else torch.addcmul(residual.to(scale.dtype), weighted, scale)
    gradient.addcmul_(wide, along, value=-1)
    normalised = wide * scale
    of_weight = (upstream * normalised).flatten(0, -2).sum(0) if wants_weight else None
    return NormGradient(gradient.to(x.dtype), normalised.mul_(weight).to(upstream.dtype), of_weight)


def split_heads(
    projected: torch.Tensor, shape: HeadShape, rotary: Rotary, norms: tuple[Norm, Norm] | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Queries, keys and values out of one projection: heads normalised where the model does that, then rotated.

    Args:
        projected: [T, (query heads + 2 × key heads) × head size].
        shape: how many heads there are.
        rotary: the positions.
        norms: of each head's queries and keys; None for none.

    Returns:
        Queries [T, query heads, head size], keys and values [T, key heads, head size], and the norms' scales.
    """
    query, key, value = _heads(projected, shape)
    scales: tuple[torch.Tensor, ...] = ()
    if norms is not None:
        query, query_scale = normalise(query, norms[0], projected.dtype)
        key, key_scale = normalise(key, norms[1], projected.dtype)
        scales = (query_scale, key_scale)
    return rotate(query, rotary), rotate(key, rotary), value.contiguous(), scales


def split_heads_backward(
    upstream: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    projected: torch.Tensor | None,
    rotary: Rotary,
    norms: tuple[tuple[Norm, torch.Tensor, bool], ...],
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Back through `split_heads`.

    Args:
        upstream: gradients of queries, keys and values.
        projected: as given to `split_heads`; needed with norms only.
        rotary: the positions.
        norms: for queries and for keys a norm, its scale, and whether its weight trains; none, or both.

    Returns:
        The gradient of `projected`, and those of the norms' weights.
    """
    back = Rotary(rotary.cos, -rotary.sin)
    gradients = [rotate(upstream[0], back), rotate(upstream[1], back), upstream[2]]
    of_weights: list[torch.Tensor | None] = []
    if projected is not None:
        shape = HeadShape(upstream[0].shape[1], upstream[1].shape[1], upstream[0].shape[2])
        for number, (norm, scale, wants_weight) in enumerate(norms):
            raw = _heads(projected, shape)[number]
            through = normalise_backward(gradients[number], raw, scale, norm, None, wants_weight)
            gradients[number] = through.of_input
            of_weights.append(through.of_weight)
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1), of_weights


def rotate(states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotary positions (https://arxiv.org/abs/2104.09864) of [T, heads, head size], the halves of a head paired."""
    half, wide = states.shape[-1] // 2, _wide(states)
    first, second = wide.split(half, -1)
    sin = rotary.sin[..., :half]
    out = wide * rotary.cos
    out[..., :half].addcmul_(second, sin, value=-1)
    out[..., half:].addcmul_(first, sin)
    return out.to(states.dtype)


def gate(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """act(gate) × up of [..., 2 I], its first half being the gate: [..., I] (https://arxiv.org/abs/2002.05202)."""
    gates, up = gate_up.chunk(2, -1)
    return _activate(gates, activation) * up


def gate_backward(upstream: torch.Tensor, gate_up: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of `gate_up` [..., 2 I], and what `gate` gave [..., I], computed again."""
    gates, up = gate_up.chunk(2, -1)
    gradient = torch.empty_like(gate_up)
    of_gates, of_up = gradient.chunk(2, -1)
    activated = _activate(gates, activation)
    torch.mul(upstream, activated, out=of_up)
    of_gates.copy_(_activate_backward(upstream * up, gates, activation))
    return gradient, activated.mul_(up)


def _activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    return F.silu(x) if activation == "silu" else F.gelu(x, approximate="tanh")


def _activate_backward(upstream: torch.Tensor, x: torch.Tensor, activation: str) -> torch.Tensor:
    if activation == "silu":
        return torch.ops.aten.silu_backward(upstream, x)
    return torch.ops.aten.gelu_backward(upstream, x, approximate="tanh")


def _heads(projected: torch.Tensor, shape: HeadShape) -> tuple[torch.Tensor, ...]:
    heads = projected.view(projected.shape[0], -1, shape.size)
    return heads.split([shape.num_query, shape.num_key, shape.num_key], 1)


def _weight(norm: Norm, dtype: torch.dtype) -> torch.Tensor:
    weight = norm.weight.to(dtype)
    return weight + norm.offset if norm.offset else weight


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
