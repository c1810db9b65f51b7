"""The decoder: final hidden states of a packed row, out of the weights of a transformers model."""

import weakref
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from llmtune.models.attention import (
    VARLEN,
    VARLEN_KERNEL,
    attention_of,
    underlying_model,
    varlen_attention,
    varlen_kernel_attention,
)
from llmtune.models.fast.block import Block, NormLayer, Way, run_block
from llmtune.models.fast.copies import Copies
from llmtune.models.fast.family import norm_layer, read_blocks
from llmtune.models.fast.kernels import Kernels, kernels_for
from llmtune.models.fast.pieces import Rotary

_ATTENTIONS = {VARLEN: varlen_attention, VARLEN_KERNEL: varlen_kernel_attention}
_DECODERS: "weakref.WeakKeyDictionary[nn.Module, FastDecoder]" = weakref.WeakKeyDictionary()


def use_decoder(model: nn.Module, decoder: "FastDecoder | None") -> None:
    """Let `final_hidden_states` take a decoder for a model's packed rows; None takes the model's own forward pass."""
    _DECODERS.pop(underlying_model(model), None)
    if decoder is not None:
        _DECODERS[underlying_model(model)] = decoder


def decoder_of(model: nn.Module) -> "FastDecoder | None":
    """The decoder that a model's packed rows take; None for its own forward pass."""
    return _DECODERS.get(underlying_model(model))


def final_hidden_states(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """[B, T, D]: what the output head would be given; `inputs` as the model itself takes them."""
    inner: Any = underlying_model(model)
    decoder = decoder_of(inner)
    if decoder is not None and inputs.get("cu_seq_lens_q") is not None and decoder.dtype == products_dtype(inner):
        return decoder.final_hidden_states(inputs)
    return inner.base_model(**inputs, use_cache=False).last_hidden_state


def products_dtype(model: nn.Module) -> torch.dtype:
    """The type that a model's matrix products are taken in now: autocast's where it is on, else the embeddings'."""
    weight: Any = underlying_model(model).get_input_embeddings().weight
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class FastDecoder:
    """Computes a Llama-like model's final hidden states from its own parameters, with its own gradients.

    The model stays whole and can be used, saved and exported as before: its parameters are the ones that train.

    Args:
        model: a causal language model, perhaps with adapters, as it will train.
        dtype: of the products.

    Raises:
        UnknownPart: the model isn't built like Llama.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        inner = underlying_model(model)
        decoder: Any = inner.base_model
        self._model = weakref.ref(inner)
        self.dtype = dtype
        """Of the products."""
        self._copies = Copies()
        self._blocks = read_blocks(decoder, dtype, self._copies)
        self._norm = norm_layer(decoder.norm, decoder.config.get_text_config().model_type)
        self.kernels: Kernels = kernels_for(decoder.norm.weight.device, dtype)
        """How the pieces between products are computed."""
        self.recompute = "nothing"
        """What is computed again in the backward pass: `nothing`, `gates` (the widest activations) or `blocks`."""

    @property
    def drops(self) -> bool:
        """Whether adapters drop inputs in training."""
        return any(group.dropout for block in self._blocks for group in block.groups)

    def final_hidden_states(self, inputs: dict[str, Any]) -> torch.Tensor:
        """[1, T, D]: what the output head would be given.

        Args:
            inputs: a packed row as `token_losses` makes it: `input_ids`, `position_ids` [1, T], `cu_seq_lens_q`,
                `max_length_q`.
        """
        inner = self._model()
        assert inner is not None, "a decoder lives as long as its model"
        assert self._copies.in_place, "the model's weights were moved since the decoder was made"
        self._copies.refresh()
        with torch.autocast(inputs["input_ids"].device.type, enabled=False):
            x = inner.get_input_embeddings()(inputs["input_ids"])[0]
            settings = self._settings(inputs, x)
            for block in self._blocks:
                if self.recompute == "blocks" and torch.is_grad_enabled():
                    x = self._checkpointed(x, block, settings)
                else:
                    x = run_block(x, block, *settings)
            normed: Any = _FinalNorm.apply(x, self._norm, self.kernels, *self._norm.trained)
            return normed[None]

    def _settings(self, inputs: dict[str, Any], x: torch.Tensor) -> tuple["_Attention", Rotary, Way]:
        """What all blocks of a pass share."""
        inner: Any = self._model()
        decoder = inner.base_model
        cos, sin = decoder.rotary_emb(x[None], position_ids=inputs["position_ids"])
        way = Way(self.kernels, self.dtype, decoder.training, self.recompute != "gates")
        attend = _Attention(attention_of(inner), inputs, training=decoder.training)
        return attend, Rotary(cos[0][:, None], sin[0][:, None]), way

    def _checkpointed(self, x: torch.Tensor, block: Block, settings: tuple["_Attention", Rotary, Way]) -> torch.Tensor:
        result: Any = checkpoint(
            run_block, x, block, *settings, use_reentrant=False, preserve_rng_state=settings[-1].drops
        )
        return result


class _Attention:
    """Attention within each example, by the implementation that the model is switched to."""

    def __init__(self, name: str, inputs: dict[str, Any], *, training: bool) -> None:
        self._function = _ATTENTIONS[name]
        self._borders = {key: value for key, value in inputs.items() if key.startswith(("cu_seq", "max_length"))}
        self._training = training

    def __call__(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key, value = (states.transpose(0, 1)[None] for states in (query, key, value))
        out, _ = self._function(
            layer,
            query,
            key,
            value,
            None,
            scaling=layer.scaling,
            dropout=layer.attention_dropout if self._training else 0.0,
            sliding_window=getattr(layer, "sliding_window", None),
            **self._borders,
        )
        return out[0].flatten(1)


class _FinalNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, norm: NormLayer, kernels: Kernels, *trained: nn.Parameter) -> torch.Tensor:
        del trained  # autograd has to see them
        normed, scale = kernels.normalise(x, norm.values, x.dtype)
        ctx.norm, ctx.kernels = norm, kernels
        ctx.save_for_backward(x, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, scale = ctx.saved_tensors
        wants = ctx.norm.weight.requires_grad
        through = ctx.kernels.normalise_backward(upstream[0], x, scale, ctx.norm.values, None, wants)
        of_weight = [] if through.of_weight is None else [through.of_weight.to(ctx.norm.weight.dtype)]
        return through.of_input, None, None, *of_weight
