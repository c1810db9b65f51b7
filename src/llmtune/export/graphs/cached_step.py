"""A causal language model as one pure function: tokens and earlier keys and values in, logits and later ones out.

ONNX, TorchScript and torch.export all take this function, with the names that the ecosystem's consumers expect.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

ARCHITECTURES = ("gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3")
"""`model_type` of the models that it is tested with."""
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies don't depend on the length."""


class CachedStep(nn.Module):
    """Some tokens further in every row of a batch, padded on the left.

    Attention is masked here, by position and padding alone, since masks that transformers makes depend on shapes in
    ways that a graph can't hold. A padded position attends to itself, so that nothing becomes NaN.

    Args:
        model: float32 model in evaluation mode, its attention `sdpa` or `eager`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        config = model.config.get_text_config()
        layer_types = getattr(config, "layer_types", None)
        self._window: int | None = getattr(config, "sliding_window", None)
        self._layer_types: list[str] | None = None if layer_types is None else sorted(set(layer_types))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits of the new tokens, and the keys and values of all.

        Args:
            input_ids: int64 [B, S], S new tokens a row.
            attention_mask: int64 [B, P + S], 0 on padding.
            position_ids: int64 [B, S]: how many tokens of the row stand before it, padding left out.
            *past: key and value of each layer, [B, key heads, P, head size] float32; P may be 0.

        Returns:
            Logits [B, S, V], then each layer's key and value [B, key heads, P + S, head size].
        """
        cache: Any = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        output: Any = self.model(
            input_ids=input_ids,
            attention_mask=self._masks(attention_mask, input_ids.shape[1], past[0].dtype),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (output.logits, *present)

    def _masks(self, attention_mask: Tensor, num_new: int, dtype: torch.dtype) -> Any:
        """One mask, or one by kind of layer where the model has several kinds."""
        if self._layer_types is None:
            return _mask(attention_mask, num_new, self._window, dtype)
        windows = {kind: self._window if kind == "sliding_attention" else None for kind in self._layer_types}
        return {kind: _mask(attention_mask, num_new, window, dtype) for kind, window in windows.items()}


def _mask(attention_mask: Tensor, num_new: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: [B, 1, S, P + S], 0 where a token may look and the least number elsewhere."""
    total = attention_mask.shape[1]
    keys = torch.arange(total, device=attention_mask.device)[None, :]
    queries = (torch.arange(num_new, device=attention_mask.device) + (total - num_new))[:, None]  # a slice has no size
    seen = keys <= queries
    if window is not None:
        seen = seen & (keys > queries - window)
    seen = (seen[None, None] & attention_mask[:, None, None, :].bool()) | (keys == queries)[None, None]
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def why_not(config: PreTrainedConfig) -> str | None:
    """Why a model can't be written as one function; None where it can."""
    text = config.get_text_config()
    if text.model_type not in ARCHITECTURES:
        return f"model_type {text.model_type} isn't among those it is tested with ({', '.join(ARCHITECTURES)})"
    for scaling in _rope_settings(getattr(text, "rope_parameters", None) or {}):
        if scaling.get("rope_type", "default") not in _STATIC_ROPE:
            return f"rope_type {scaling['rope_type']} depends on the length of the text, which a graph can't hold"
    return None


def _rope_settings(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The rotary embeddings' settings: one for all layers, or one by kind of layer."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def cache_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Number of layers, key heads, and head size: what `past` is made of.

    Raises:
        ValueError: the layers differ, so that no single shape describes them.
    """
    with torch.inference_mode():
        ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        cache: Any = model(input_ids=ids, use_cache=True).past_key_values
    shapes = {tuple(tensor.shape) for layer in cache.layers for tensor in (layer.keys, layer.values)}
    if len(shapes) != 1:
        raise ValueError(f"the layers' keys and values have {len(shapes)} different shapes")
    _, heads, _, size = shapes.pop()
    return len(cache.layers), heads, size


def input_names(num_layers: int) -> list[str]:
    """Names of the function's inputs, in order, as optimum and transformers.js know them."""
    return ["input_ids", "attention_mask", "position_ids", *_layer_names("past_key_values", num_layers)]


def output_names(num_layers: int) -> list[str]:
    """Names of the function's outputs, in order."""
    return ["logits", *_layer_names("present", num_layers)]


def _layer_names(prefix: str, num_layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(num_layers) for part in ("key", "value")]


def sample_inputs(model: PreTrainedModel, *, batch: int = 2, past: int = 3, new: int = 4) -> tuple[Tensor, ...]:
    """Inputs to trace with: two rows, the first one padded on the left by one token."""
    layers, heads, size = cache_shape(model)
    device = model.device
    mask = torch.ones((batch, past + new), dtype=torch.long, device=device)
    mask[0, 0] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
    vocabulary = model.config.get_text_config().vocab_size
    ids = (torch.arange(batch * new, device=device).reshape(batch, new) + 5) % vocabulary
    generator = torch.Generator().manual_seed(0)
    cached = [torch.randn((batch, heads, past, size), generator=generator).to(device) for _ in range(2 * layers)]
    return (ids, mask, positions, *cached)
