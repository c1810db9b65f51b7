"""Which models llama.cpp computes as transformers does, and how their weights stand in its files."""

from dataclasses import dataclass
from typing import Any

import gguf
from transformers import PreTrainedConfig


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What llama.cpp takes for granted about one architecture."""

    number: gguf.MODEL_ARCH
    """Its number in the gguf package, which gives its name and its tensors' names."""
    activation: str = "silu"
    pairs_rows: bool = False
    """Whether it turns neighbouring rows of queries and keys, where transformers turns the two halves of a head."""
    norm_offset: float = 0.0
    """What transformers adds to a norm's weight when it computes, and llama.cpp doesn't."""
    window_period: int | None = None
    """Every n-th layer sees the whole text and the others a window; None where every layer sees the whole text."""
    own_head: bool = True
    """Whether it can have an output head of its own weights."""
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    """Rotary embeddings that it computes."""
    scaled_layers: int | None = None
    """Number of layers of the one size whose attention is scaled by another rule."""
    transposed: bool = False
    """Whether transformers keeps its projections the other way round."""

    @property
    def name(self) -> str:
        """As `general.architecture` has it."""
        return gguf.MODEL_ARCH_NAMES[self.number]


_LLAMA = Architecture(number=gguf.MODEL_ARCH.LLAMA, pairs_rows=True, rope_types=("default", "linear", "yarn", "llama3"))
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(number=gguf.MODEL_ARCH.QWEN2),
    "qwen3": Architecture(number=gguf.MODEL_ARCH.QWEN3),
    "gemma": Architecture(
        number=gguf.MODEL_ARCH.GEMMA,
        activation="gelu_pytorch_tanh",
        norm_offset=1.0,
        own_head=False,
        rope_types=("default",),
    ),
    "gemma2": Architecture(
        number=gguf.MODEL_ARCH.GEMMA2,
        activation="gelu_pytorch_tanh",
        norm_offset=1.0,
        window_period=2,
        own_head=False,
        rope_types=("default",),
        scaled_layers=46,
    ),
    "gemma3_text": Architecture(
        number=gguf.MODEL_ARCH.GEMMA3,
        activation="gelu_pytorch_tanh",
        norm_offset=1.0,
        window_period=6,
        rope_types=("default", "linear"),
        scaled_layers=62,
    ),
    "smollm3": Architecture(number=gguf.MODEL_ARCH.SMOLLM3, pairs_rows=True, rope_types=("default",)),
    "gpt2": Architecture(number=gguf.MODEL_ARCH.GPT2, activation="gelu_new", rope_types=(), transposed=True),
}
"""By transformers' `model_type`."""
_NO_ROPE_PERIOD = 4
"""llama.cpp leaves every fourth layer of smollm3 without rotary embeddings."""


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The architecture of a model that `why_not` doesn't refuse."""
    return ARCHITECTURES[config.model_type]


def why_not(config: PreTrainedConfig) -> str | None:
    """Why llama.cpp wouldn't compute a model as it was trained, None where it does."""
    if config.model_type not in ARCHITECTURES:
        return f"is written for model_type {', '.join(ARCHITECTURES)}, and this model is {config.model_type}"
    architecture = architecture_of(config)
    checks = (_why_not_layers, _why_not_rope, _why_not_windows, _why_not_scale)
    return next((reason for check in checks if (reason := check(config, architecture))), None)


def head_size(config: Any) -> int:
    """Numbers in one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_settings(config: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Rotary embeddings of layers that see the whole text, and of those with a window where they have their own."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in parameters:
        return parameters["full_attention"], parameters.get("sliding_attention")
    return parameters, None


def _why_not_layers(config: Any, architecture: Architecture) -> str | None:
    names = ("hidden_activation", "hidden_act", "activation_function")
    activation = next(value for name in names if (value := getattr(config, name, None)))
    if activation != architecture.activation:
        return f"computes {architecture.name} with {architecture.activation}, and this model has {activation}"
    if not config.tie_word_embeddings and not architecture.own_head:
        return f"has no place for an output head of its own in {architecture.name} models"
    if architecture.number == gguf.MODEL_ARCH.QWEN2 and head_size(config) * config.num_attention_heads != (
        config.hidden_size
    ):
        return "computes qwen2 with heads that together are as wide as the model"
    odd = {"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True}
    for name, expected in odd.items():
        if getattr(config, name, expected) != expected:
            return f"doesn't compute {name}={getattr(config, name)}"
    layers = getattr(config, "no_rope_layers", None)
    if layers is not None and layers != [int(bool((n + 1) % _NO_ROPE_PERIOD)) for n in range(len(layers))]:
        return f"leaves one layer in {_NO_ROPE_PERIOD} without rotary embeddings, and this model others"
    return None


def _why_not_rope(config: Any, architecture: Architecture) -> str | None:
    for settings in rope_settings(config):
        kind = (settings or {}).get("rope_type", "default")
        if settings and kind not in architecture.rope_types:
            return f"doesn't compute rope_type={kind} for {architecture.name} models"
        if settings and settings.get("partial_rotary_factor", 1.0) != 1.0:
            return f"turns whole heads, and partial_rotary_factor is {settings['partial_rotary_factor']}"
    _, windowed = rope_settings(config)
    if windowed and windowed.get("rope_type", "default") != "default":
        return f"doesn't compute rope_type={windowed['rope_type']} in layers with a window"
    return None


def _why_not_windows(config: Any, architecture: Architecture) -> str | None:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and set(kinds) == {"full_attention"}):
        return None
    if architecture.window_period is None:
        if window >= config.max_position_embeddings:
            return None
        return (
            f"lets every token of {architecture.name} models see the whole text, and this one was trained to see "
            f"{window} tokens (sliding_window)"
        )
    period = architecture.window_period
    expected = ["full_attention" if (n + 1) % period == 0 else "sliding_attention" for n in range(len(kinds or ()))]
    if kinds != expected:
        return f"lets one layer in {period} of {architecture.name} see the whole text, and layer_types says otherwise"
    return None


def _why_not_scale(config: Any, architecture: Architecture) -> str | None:
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None:
        heads = config.num_attention_heads
        other = config.num_hidden_layers == architecture.scaled_layers
        expected = config.hidden_size // heads if other else head_size(config)
        if scalar != expected:
            return f"divides attention scores by the root of {expected} here, and query_pre_attn_scalar is {scalar}"
    capped = architecture.number == gguf.MODEL_ARCH.GEMMA2
    if capped != bool(getattr(config, "attn_logit_softcapping", None)):
        state = "always" if capped else "never"
        return f"{state} caps attention scores of {architecture.name} models, and attn_logit_softcapping says otherwise"
    return None
