"""The shape of a model as llama.cpp reads it: `<architecture>.*` of a GGUF file."""

import math
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedConfig

from llmtune.export.gguf_files.architecture import Architecture, head_size, rope_settings

_SCALING = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}


def add_metadata(writer: gguf.GGUFWriter, config: PreTrainedConfig, architecture: Architecture) -> None:
    """Add what llama.cpp must know to compute the model."""
    if architecture.number == gguf.MODEL_ARCH.GPT2:
        _add_gpt2(writer, config)
        return
    shape: Any = config
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(head_size(shape))
    writer.add_value_length(head_size(shape))
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    _add_rope(writer, shape)
    if architecture.window_period is not None:
        writer.add_sliding_window(shape.sliding_window)
    if cap := getattr(shape, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(cap)
    if hasattr(shape, "final_logit_softcapping"):
        writer.add_final_logit_softcapping(shape.final_logit_softcapping or 0.0)  # left out, gemma2 would take 30


def rope_factors(config: PreTrainedConfig) -> np.ndarray | None:
    """By how much each frequency is divided: float32 [head size / 2] of Llama 3's rotary embeddings, else None.

    The rule is https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py's `apply_scaling`.
    """
    settings, _ = rope_settings(config)
    if settings.get("rope_type") != "llama3":
        return None
    size = head_size(config)
    wavelengths = 2 * math.pi * settings["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / settings["factor"] + smooth)).astype(np.float32)


def _add_rope(writer: gguf.GGUFWriter, config: Any) -> None:
    settings, windowed = rope_settings(config)
    writer.add_rope_dimension_count(head_size(config))
    writer.add_rope_freq_base(settings["rope_theta"])
    if windowed:
        writer.add_rope_freq_base_swa(windowed["rope_theta"])
    kind = settings.get("rope_type", "default")
    if kind not in _SCALING:
        return
    writer.add_rope_scaling_type(_SCALING[kind])
    writer.add_rope_scaling_factor(settings["factor"])
    if kind == "yarn":
        original = settings.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        for name, add in (
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if settings.get(name) is not None:
                add(settings[name])


def _add_gpt2(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_vocab_size(config.vocab_size)
