"""Attention for packed rows: each example attends to itself alone, without a mask and without padding.

Two implementations stand in transformers' registry beside its own: `llmtune_varlen` calls torch's causal attention once
an example; `llmtune_varlen_kernel` calls torch's variable-length kernel (GPU, bf16 or fp16, no dropout). Both take the
borders from the forward argument `cu_seq_lens_q`, as transformers' flash attention does; without it (generation,
padded rows) they are transformers' `sdpa`.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

VARLEN = "llmtune_varlen"
VARLEN_KERNEL = "llmtune_varlen_kernel"  # transformers looks up names with "flash" in them on the Hub
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's: it makes a plan for each new length, and a packed row brings new lengths in every step."""
_ROW_KERNELS = [SDPBackend.CUDNN_ATTENTION, *_KERNELS]
_ROW_MULTIPLE = 128
"""Lengths of rows for which a plan of cuDNN's is worth making: rows are filled, other examples end anywhere."""
_UNKNOWN_EXTRAS = ("softcap", "s_aux", "position_bias")


def varlen_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each example of a packed row.

    Args:
        module: the attention layer.
        query: [1, heads, T, head size].
        key: [1, key heads, T, head size].
        value: as `key`.
        attention_mask: only without `cu_seq_lens_q`.
        **kwargs: `cu_seq_lens_q` int32 [examples + 1], `scaling`, `dropout`, and what else the model passes.

    Returns:
        [1, T, heads, head size], and None for the weights.

    Raises:
        NotImplementedError: the layer asks for something that this attention doesn't compute.
    """
    borders = kwargs.get("cu_seq_lens_q")
    if borders is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths = borders.diff().tolist()
    _refuse_extras(module, kwargs, longest=max(lengths))
    if query.is_cuda:  # of its kernels not all share key heads
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    with sdpa_kernel(_KERNELS) if query.is_cuda else nullcontext():
        parts = [
            F.scaled_dot_product_attention(
                *example,
                dropout_p=kwargs.get("dropout") or 0.0,
                scale=kwargs.get("scaling"),
                is_causal=True,
                enable_gqa=not query.is_cuda,
            )
            for example in zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
        ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def varlen_kernel_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As `varlen_attention`, in one call of torch's kernel; layers with dropout go example by example.

    Raises:
        NotImplementedError: the layer asks for something that this attention doesn't compute.
    """
    borders = kwargs.get("cu_seq_lens_q")
    if borders is None or kwargs.get("dropout"):
        return varlen_attention(module, query, key, value, attention_mask, **kwargs)
    assert varlen_attn is not None, "chosen only where torch has the kernel"
    longest = int(kwargs["max_length_q"])
    _refuse_extras(module, kwargs, longest=longest)
    dtype = _kernel_dtype(query)
    if _are_rows(borders, longest, query.shape[2]):
        return _rows_attention((query, key, value), dtype, longest, kwargs.get("scaling")), None
    query, key, value = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    out = varlen_attn(
        query, key, value, borders, borders, longest, longest, scale=kwargs.get("scaling"), **_kernel_settings()
    )
    return cast(torch.Tensor, out)[None], None


def _are_rows(borders: torch.Tensor, longest: int, num_tokens: int) -> bool:
    """Whether several examples all have the same length, one that rows are cut to; told without asking the device."""
    num_examples = borders.shape[0] - 1
    return num_examples > 1 and num_examples * longest == num_tokens and longest % _ROW_MULTIPLE == 0


def _rows_attention(
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor], dtype: torch.dtype, length: int, scale: float | None
) -> torch.Tensor:
    """Causal attention of examples of one length, as rows of a batch: cuDNN's kernel is the fastest for these."""
    query, key, value = (
        tensor[0].transpose(0, 1).to(dtype).unflatten(0, (-1, length)).transpose(1, 2) for tensor in states
    )
    with sdpa_kernel(_ROW_KERNELS, set_priority=True):
        out = F.scaled_dot_product_attention(query, key, value, scale=scale, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).flatten(0, 1)[None]


def _kernel_dtype(query: torch.Tensor) -> torch.dtype:
    """What autocast would compute attention in; torch's kernel isn't on autocast's list."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


@cache
def _kernel_settings() -> dict[str, Any]:
    """Causal, with fewer key heads than query heads, as this torch's kernel wants to be told."""
    known = inspect.signature(varlen_attn).parameters if varlen_attn is not None else {}
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return {**causal, "enable_gqa": True} if "enable_gqa" in known else causal


def _refuse_extras(module: nn.Module, kwargs: dict[str, Any], longest: int) -> None:
    for name in _UNKNOWN_EXTRAS:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"its attention has {name}")
    window = kwargs.get("sliding_window")
    if window is not None and window < longest:
        raise NotImplementedError(f"its attention has a sliding window of {window} tokens, and examples are longer")
    causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise NotImplementedError("its attention isn't causal")


def _mask(
    batch_size: int, q_length: int, kv_length: int, attention_mask: torch.Tensor | None = None, **kwargs: Any
) -> torch.Tensor | None:
    """No mask where every position is a token and there is no cache; else sdpa's."""
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(batch_size, q_length, kv_length, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(VARLEN, varlen_attention)
AttentionInterface.register(VARLEN_KERNEL, varlen_kernel_attention)
AttentionMaskInterface.register(VARLEN, _mask)
AttentionMaskInterface.register(VARLEN_KERNEL, _mask)


def underlying_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT or data-parallel wrapper, or the model itself."""
    inner: Any = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def attention_of(model: nn.Module) -> str:
    """The name of the attention implementation that is switched on."""
    return str(underlying_model(model).config._attn_implementation)


def set_attention(model: nn.Module, name: str) -> None:
    """Switch the attention implementation, also inside a wrapper.

    Raises:
        ValueError: the model doesn't take its attention from transformers' registry.
    """
    inner = underlying_model(model)
    inner.set_attn_implementation(name)
    if inner.config._attn_implementation != name:
        raise ValueError(f"{type(inner).__name__} doesn't take its attention from transformers' registry")


def plain_attention_name(model: nn.Module) -> str:
    """Transformers' own attention for an architecture: `sdpa`, or `eager` where it can't have that."""
    return "sdpa" if underlying_model(model)._supports_sdpa else "eager"


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Run a block (generation with a cache, say) under transformers' own attention; then the former is back."""
    before = attention_of(model)
    set_attention(model, plain_attention_name(model))
    try:
        yield
    finally:
        set_attention(model, before)
