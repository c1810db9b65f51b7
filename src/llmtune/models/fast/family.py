"""Which models are built like Llama: read from a model's own modules, refused where one of them is anything else."""

from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import nn

from llmtune.models.fast.block import Block, NormLayer
from llmtune.models.fast.copies import Copies
from llmtune.models.fast.layers import UnknownPart, read_layer
from llmtune.models.fast.linear import LinearGroup
from llmtune.models.fast.pieces import HeadShape
from llmtune.models.hooks import is_hooked

_FAMILY = ("llama", "mistral", "qwen2", "qwen3", "gemma")
"""Model types whose blocks are put together in the order that `block` has."""
_ONE_MORE = ("gemma",)
"""Those whose norms multiply by one more than their weight."""
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def read_blocks(decoder: Any, dtype: torch.dtype, copies: Copies) -> list[Block]:
    """The blocks of a decoder, their weights merged where they share an input.

    Args:
        decoder: transformers' model without its head.
        dtype: of the products.
        copies: gets what is held in another type.

    Raises:
        UnknownPart: the model isn't built like Llama, or a part of it is of another kind.
    """
    config = decoder.config.get_text_config()
    check_family(decoder)
    return [_read_block(layer, config, dtype, copies) for layer in decoder.layers[: config.num_hidden_layers]]


def check_family(decoder: Any) -> None:
    """Check that a decoder has Llama's parts and no others, without changing it.

    Raises:
        UnknownPart: it has others, or a hook has to see one of them.
    """
    config = decoder.config.get_text_config()
    if config.model_type not in _FAMILY:
        raise UnknownPart(f"{config.model_type} isn't of the Llama family")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None) is not None:
            raise UnknownPart(f"the model has {name}")
    if config.hidden_act not in _ACTIVATIONS:
        raise UnknownPart(f"the model's activation is {config.hidden_act}")
    _check_parts(decoder, "the decoder", _DECODER)
    for layer in decoder.layers:
        _check_parts(layer, "a layer", _LAYER)
        _check_parts(layer.self_attn, "an attention layer", _ATTENTION, _HEAD_NORMS)
        _check_parts(layer.mlp, "an MLP", _MLP)
        for linear, name in _linears(layer):
            read_layer(linear, name)
    for name, module in decoder.named_modules():
        if is_hooked(module):
            raise UnknownPart(f"a hook has to see {name or 'the decoder'}")


def norm_layer(module: Any, model_type: str) -> NormLayer:
    """A norm as `block` takes it."""
    epsilon = getattr(module, "variance_epsilon", None)
    epsilon = module.eps if epsilon is None else epsilon
    return NormLayer(module.weight, float(epsilon), 1.0 if model_type in _ONE_MORE else 0.0)


def _read_block(layer: Any, config: Any, dtype: torch.dtype, copies: Copies) -> Block:
    attention = layer.self_attn
    layers = {name: read_layer(linear, name) for linear, name in _linears(layer)}

    def group(*names: str) -> LinearGroup:
        return LinearGroup([layers[name] for name in names], dtype, copies)

    size = attention.head_dim
    key_features = layers["k_proj"].base.out_features
    norms = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    return Block(
        first_norm=norm_layer(layer.input_layernorm, config.model_type),
        qkv=group("q_proj", "k_proj", "v_proj"),
        head_norms=tuple(norm_layer(norm, config.model_type) for norm in norms),
        output=group("o_proj"),
        second_norm=norm_layer(layer.post_attention_layernorm, config.model_type),
        gate_up=group("gate_proj", "up_proj"),
        down=group("down_proj"),
        heads=HeadShape(layers["q_proj"].base.out_features // size, key_features // size, size),
        activation=_ACTIVATIONS[config.hidden_act],
        attention=attention,
    )


def _linears(layer: Any) -> Sequence[tuple[nn.Module, str]]:
    attention, mlp = layer.self_attn, layer.mlp
    of_attention = [(getattr(attention, name), name) for name in sorted(_ATTENTION)]
    return [*of_attention, *((getattr(mlp, name), name) for name in sorted(_MLP - {"act_fn"}))]


def _check_parts(module: nn.Module, what: str, parts: Set[str], allowed: Set[str] = frozenset()) -> None:
    """Check that a module has these children, perhaps all of the allowed ones, and no parameters of its own."""
    children = {name for name, _ in module.named_children()}
    if children not in (parts, parts | allowed):
        odd = ", ".join(sorted(children ^ parts))
        raise UnknownPart(f"{what} has other parts than Llama's: {odd}")
    if any(True for _ in module.parameters(recurse=False)):
        raise UnknownPart(f"{what} has weights of its own")
