"""Linear layers and the adapters on them, as a model has them."""

from dataclasses import dataclass
from typing import Any

from bitsandbytes.nn import Linear4bit, Params4bit
from peft.tuners.lora import LoraLayer
from torch import nn

_PLAIN = (nn.Linear, Linear4bit)


class UnknownPart(Exception):
    """A part of a model that isn't computed here; the message says which, and what it is."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA on one layer: y += scale × B A x (https://arxiv.org/abs/2106.09685)."""

    a: nn.Parameter
    """[r, K]."""
    b: nn.Parameter
    """[N, r]."""
    scale: float
    dropout: float
    """Probability with which an element of its input is dropped in training."""


@dataclass(frozen=True)
class Layer:
    """One linear layer, and the adapter on it."""

    base: nn.Linear
    adapter: Adapter | None

    @property
    def is_quantised(self) -> bool:
        """Whether bitsandbytes holds the weight in 4 bits."""
        return isinstance(self.base, Linear4bit)


def read_layer(module: nn.Module, name: str) -> Layer:
    """Take apart a linear layer, plain or in 4 bits, with an adapter or without.

    Raises:
        UnknownPart: it is of another kind.
    """
    if not isinstance(module, LoraLayer):
        return Layer(_plain(module, name), None)
    layer: Any = module
    base = _plain(layer.get_base_layer(), name)
    if layer.merged or layer.disable_adapters or list(layer.active_adapters) != ["default"]:
        raise UnknownPart(f"{name} has other adapters than one that is switched on")
    if set(layer.lora_A) != {"default"}:
        raise UnknownPart(f"{name} has several adapters, or none")
    if layer.lora_variant or layer.lora_bias.get("default") or getattr(layer, "fan_in_fan_out", False):
        raise UnknownPart(f"the adapter on {name} is a variant of LoRA")
    dropout = float(getattr(layer.lora_dropout["default"], "p", 0.0))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return Layer(base, Adapter(a, b, float(layer.scaling["default"]), dropout))


def _plain(module: Any, name: str) -> nn.Linear:
    if type(module) not in _PLAIN:
        raise UnknownPart(f"{name} is a {type(module).__name__}")
    if isinstance(module, Linear4bit) and not isinstance(module.weight, Params4bit):
        raise UnknownPart(f"{name} isn't quantised yet")
    return module
