"""The pieces of a block as Triton kernels: each reads its inputs once and writes its results once.

They do what the functions of the same names in `pieces` do, whose docstrings hold; sums are in float32. Some write into
memory that isn't needed any more, as said there.
"""

# A kernel takes each pointer and size by itself, and its launch grid in brackets.
# ruff: noqa: PLR0913, PLR0917
# pyright: reportMissingImports=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl

from llmtune.models.fast.pieces import HeadShape, Norm, NormGradient, Rotary

_ROWS_PER_PROGRAM = 64
"""Rows whose share of a norm's weight gradient one program adds up."""
_GATE_BLOCK = 1024
_LOGITS_BLOCK = 8192


def normalise(x: torch.Tensor, norm: Norm, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """See `pieces`; x may be some heads out of a wider row, [T, heads, head size]."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    _run_normalise(x, None, norm, None, out, scale)
    return out, scale


def add_and_normalise(
    x: torch.Tensor, delta: torch.Tensor, norm: Norm, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `pieces`."""
    total, out = torch.empty_like(x), torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    _run_normalise(x, delta, norm, total, out, scale)
    return total, out, scale


def normalise_backward(
    upstream: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor | None,
    wants_weight: bool,
) -> NormGradient:
    """See `pieces`."""
    upstream = upstream.contiguous()
    features, num_rows = x.shape[-1], scale.numel()
    of_input = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    result = torch.empty(x.shape, dtype=upstream.dtype, device=x.device)
    rows = _ROWS_PER_PROGRAM if wants_weight else 1
    programs = triton.cdiv(num_rows, rows)
    partial = torch.empty((programs, features) if wants_weight else (1,), dtype=torch.float32, device=x.device)
    heads, stride = _rows_of(x)
    _normalise_backward[(programs,)](
        upstream,
        x,
        scale,
        norm.weight,
        x if residual is None else residual.contiguous(),
        *(of_input, result, partial),
        *(num_rows, features, heads, stride, norm.offset),
        HAS_RESIDUAL=residual is not None,
        WANTS_WEIGHT=wants_weight,
        ROWS=rows,
        BLOCK=triton.next_power_of_2(features),
        num_warps=_warps(features),
    )
    return NormGradient(of_input, result, partial.sum(0) if wants_weight else None)


def split_heads(
    projected: torch.Tensor, shape: HeadShape, rotary: Rotary, norms: tuple[Norm, Norm] | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """See `pieces`; the results lie each by itself, as attention's kernels would copy them otherwise."""
    query, key, value = projected.view(projected.shape[0], -1, shape.size).split(
        [shape.num_query, shape.num_key, shape.num_key], 1
    )
    scales: tuple[torch.Tensor, ...] = ()
    if norms is not None:
        query, query_scale = normalise(query, norms[0], projected.dtype)
        key, key_scale = normalise(key, norms[1], projected.dtype)
        scales = (query_scale, key_scale)
    rotated = []
    for states in (query, key):
        out = torch.empty(states.shape, dtype=states.dtype, device=states.device)
        _run_rotate(states, out, rotary, back=False)
        rotated.append(out)
    return rotated[0], rotated[1], value.contiguous(), scales


def split_heads_backward(
    upstream: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    projected: torch.Tensor | None,
    rotary: Rotary,
    norms: tuple[tuple[Norm, torch.Tensor, bool], ...],
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """See `pieces`."""
    num_rows, num_query, size = upstream[0].shape
    counts = [num_query, upstream[1].shape[1], upstream[1].shape[1]]
    whole = torch.empty(num_rows, sum(counts) * size, dtype=upstream[0].dtype, device=upstream[0].device)
    parts = whole.view(num_rows, -1, size).split(counts, 1)
    for gradient, part in zip(upstream[:2], parts[:2], strict=True):
        _run_rotate(gradient.contiguous(), part, rotary, back=True)
    parts[2].copy_(upstream[2])
    of_weights: list[torch.Tensor | None] = []
    if projected is not None:
        raw = projected.view(num_rows, -1, size).split(counts, 1)
        for states, part, (norm, scale, wants_weight) in zip(raw[:2], parts[:2], norms, strict=True):
            through = normalise_backward(part, states, scale, norm, None, wants_weight)
            part.copy_(through.of_input)
            of_weights.append(through.of_weight)
    return whole, of_weights


def gate(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """See `pieces`."""
    features = gate_up.shape[1] // 2
    out = torch.empty(gate_up.shape[0], features, dtype=gate_up.dtype, device=gate_up.device)
    _gate[_gate_grid(out)](gate_up, out, features, SILU=activation == "silu", BLOCK=_GATE_BLOCK)
    return out


def gate_backward(upstream: torch.Tensor, gate_up: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """See `pieces`; the gradient takes the memory of `gate_up`, the product that of `upstream`."""
    features = upstream.shape[1]
    _gate_backward[_gate_grid(upstream)](upstream, gate_up, features, SILU=activation == "silu", BLOCK=_GATE_BLOCK)
    return gate_up, upstream


def cross_entropy_with_gradient(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `llmtune.models.cross_entropy`; a position whose target is negative has no loss and no gradient."""
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _cross_entropy[(logits.shape[0],)](
        logits, logits.stride(0), targets, losses, VOCABULARY=logits.shape[1], BLOCK=_LOGITS_BLOCK, num_warps=16
    )
    return losses, logits


def _run_normalise(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    norm: Norm,
    total: torch.Tensor | None,
    out: torch.Tensor,
    scale: torch.Tensor,
) -> None:
    features = x.shape[-1]
    heads, stride = _rows_of(x)
    _normalise[(scale.numel(),)](
        x,
        x if delta is None else delta,
        norm.weight,
        x if total is None else total,
        *(out, scale),
        *(features, heads, stride, norm.epsilon, norm.offset),
        HAS_DELTA=delta is not None,
        BLOCK=triton.next_power_of_2(features),
        num_warps=_warps(features),
    )


def _run_rotate(source: torch.Tensor, out: torch.Tensor, rotary: Rotary, *, back: bool) -> None:
    num_rows, heads, size = source.shape
    assert source.stride(1) == out.stride(1) == size, "heads of a row lie side by side"
    _rotate[(num_rows,)](
        *(source, source.stride(0), out, out.stride(0)),
        *(rotary.cos, rotary.sin, heads, -1.0 if back else 1.0),
        HALF=size // 2,
        HALF_BLOCK=triton.next_power_of_2(size // 2),
        HEADS=triton.next_power_of_2(heads),
    )


def _rows_of(x: torch.Tensor) -> tuple[int, int]:
    """Heads in a row, and from one row to the next; a matrix has one head in each."""
    return (1, x.stride(0)) if x.ndim == 2 else (x.shape[1], x.stride(0))


def _warps(features: int) -> int:
    return min(16, max(1, triton.next_power_of_2(features) // 512))


def _gate_grid(out: torch.Tensor) -> tuple[int, int]:
    return out.shape[0], triton.cdiv(out.shape[1], _GATE_BLOCK)


@triton.jit
def _normalise(
    x,
    delta,
    weight,
    total,
    out,
    scale,
    features,
    heads,
    stride,
    epsilon,
    offset,
    HAS_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < features
    place = (row // heads) * stride + (row % heads) * features + columns
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_DELTA:
        value += tl.load(delta + row * features + columns, mask=mask, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row * features + columns, rounded, mask=mask)
        value = rounded.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(value * value, 0) / features + epsilon)
    tl.store(scale + row, factor)
    weights = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32) + offset
    tl.store(out + row * features + columns, (value * factor * weights).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _normalise_backward(
    upstream,
    x,
    scale,
    weight,
    residual,
    of_input,
    result,
    partial,
    num_rows,
    features,
    heads,
    stride,
    offset,
    HAS_RESIDUAL: tl.constexpr,
    WANTS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < features
    weights = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32) + offset
    of_weight = tl.zeros((BLOCK,), dtype=tl.float32)
    for number in range(ROWS):
        row = program * ROWS + number
        inside = mask & (row < num_rows)
        place = row * features + columns
        above = tl.load(upstream + place, mask=inside, other=0.0).to(tl.float32)
        read = (row // heads) * stride + (row % heads) * features + columns
        factor = tl.load(scale + row, mask=row < num_rows, other=0.0)
        normalised = tl.load(x + read, mask=inside, other=0.0).to(tl.float32) * factor
        weighted = above * weights
        mean = tl.sum(weighted * normalised, 0) / features
        gradient = factor * (weighted - normalised * mean)
        if HAS_RESIDUAL:
            gradient += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(of_input + place, gradient.to(of_input.dtype.element_ty), mask=inside)
        tl.store(result + place, (normalised * weights).to(result.dtype.element_ty), mask=inside)
        if WANTS_WEIGHT:
            of_weight += above * normalised
    if WANTS_WEIGHT:
        tl.store(partial + program * features + columns, of_weight, mask=mask)


@triton.jit
def _rotate(
    source,
    source_stride,
    out,
    out_stride,
    cos,
    sin,
    heads,
    sign,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    mask = (head < heads) & (pair < HALF)
    angle = row * 2 * HALF + pair
    cosine = tl.load(cos + angle, mask=pair < HALF, other=0.0).to(tl.float32)
    sine = tl.load(sin + angle, mask=pair < HALF, other=0.0).to(tl.float32) * sign
    place = head * 2 * HALF + pair
    first = tl.load(source + row * source_stride + place, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + row * source_stride + place + HALF, mask=mask, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    tl.store(out + row * out_stride + place, (first * cosine - second * sine).to(kind), mask=mask)
    tl.store(out + row * out_stride + place + HALF, (second * cosine + first * sine).to(kind), mask=mask)


@triton.jit
def _activate(x, SILU: tl.constexpr):
    """The activation and its derivative, in float32."""
    if SILU:
        sigmoid = 1.0 / (1.0 + tl.exp(-x))
        return x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid))
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    tanh = 2.0 / (1.0 + tl.exp(-2.0 * inner)) - 1.0
    slope = 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x)
    return 0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope


@triton.jit
def _gate(gate_up, out, features, SILU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < features
    gates = tl.load(gate_up + row * 2 * features + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * features + features + columns, mask=mask, other=0.0).to(tl.float32)
    activated, _ = _activate(gates, SILU)
    tl.store(out + row * features + columns, (activated * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gate_backward(upstream, gate_up, features, SILU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < features
    place = gate_up + row * 2 * features + columns
    above = tl.load(upstream + row * features + columns, mask=mask, other=0.0).to(tl.float32)
    gates = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(place + features, mask=mask, other=0.0).to(tl.float32)
    activated, slope = _activate(gates, SILU)
    kind = gate_up.dtype.element_ty
    tl.store(place, (above * up * slope).to(kind), mask=mask)
    tl.store(place + features, (above * activated).to(kind), mask=mask)
    tl.store(upstream + row * features + columns, (activated * up).to(kind), mask=mask)


@triton.jit
def _cross_entropy(logits, stride, targets, losses, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    columns = tl.arange(0, BLOCK)
    if target < 0:
        tl.store(losses + row, 0.0)
        for start in range(0, VOCABULARY, BLOCK):
            inside = start + columns < VOCABULARY
            tl.store(logits + start + columns, tl.zeros((BLOCK,), logits.dtype.element_ty), mask=inside)
        return
    largest = -float("inf")
    total = 0.0
    for start in range(0, VOCABULARY, BLOCK):
        inside = start + columns < VOCABULARY
        value = tl.load(logits + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(largest, tl.max(value, 0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(value - higher), 0)
        largest = higher
    norm = largest + tl.log(total)
    tl.store(losses + row, norm - tl.load(logits + target).to(tl.float32))
    tl.debug_barrier()  # the target's logit is read before it is written over
    for start in range(0, VOCABULARY, BLOCK):
        inside = start + columns < VOCABULARY
        value = tl.load(logits + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        share = tl.exp(value - norm)
        share = tl.where(start + columns == target, share - 1.0, share)
        tl.store(logits + start + columns, share.to(logits.dtype.element_ty), mask=inside)
