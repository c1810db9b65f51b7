"""`method`: how the base model is specialised."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, Fraction, PositiveFloat, PositiveInt, Text


@dataclass(config=STRICT, frozen=True, kw_only=True)
class FullConfig:
    """Every weight of the model trains."""

    name: Literal["full"] = "full"
    """The method's name."""
    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate that suits this method; `train.learning_rate` takes it unless set."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class UntrainedConfig:
    """A whole model that `run=` named: taken as it is, nothing trains."""

    name: Literal["none"] = "none"
    """The method's name."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters beside frozen weights."""

    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate that suits this method; `train.learning_rate` takes it unless set."""
    rank: PositiveInt = 16
    """Rank of the update, `W + (alpha / rank) B A`; higher is more expressive and slower."""
    alpha: PositiveFloat = 32.0
    """Scale of the update: it is multiplied by `alpha / rank`."""
    dropout: Fraction = 0.1
    """Share of an adapter's input that is dropped while training; 0 turns it off."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which linear layers get an adapter: `all-linear` (all but the output head), or a list of module names."""
    adapter: Text | None = None
    """Adapter that training goes on from, with its rank, alpha and targets: a run, a checkpoint, the folder of a PEFT
    adapter, or its Hub id. null starts a new one."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class LoraConfig(AdapterConfig):
    """Adapters on the base as it is (Hu et al., 2021, https://arxiv.org/abs/2106.09685)."""

    name: Literal["lora"] = "lora"
    """The method's name."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class QloraConfig(AdapterConfig):
    """Adapters on a base held in 4 bits (Dettmers et al., 2023, https://arxiv.org/abs/2305.14314)."""

    name: Literal["qlora"] = "qlora"
    """The method's name."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit data type of the base: `nf4` (normal float) or `fp4`."""
    double_quant: bool = True
    """Whether the quantisation constants are quantised too; saves about 0.4 bits a weight."""


MethodConfig = Annotated[FullConfig | LoraConfig | QloraConfig | UntrainedConfig, Field(discriminator="name")]
