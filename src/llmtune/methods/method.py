"""What a fine-tuning method is: base model in, trainable model out, and how what it trained is saved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from llmtune.models.load import LoadSettings
from llmtune.models.source import ModelSource


class Method(Protocol):
    """One way of specialising a base model."""

    name: str
    """`full`, `lora` or `qlora`."""

    def load(self, source: ModelSource, how: LoadSettings) -> PreTrainedModel:
        """The base model as this method trains on it, in evaluation mode."""
        ...

    def make_trainable(self, base: PreTrainedModel, seed: int, new_ids: Sequence[int] = ()) -> nn.Module:
        """The model with exactly what trains requiring gradients, held in the method's master type.

        Equal seeds give equal weights.

        Args:
            base: from `load`.
            seed: decides what is drawn at random.
            new_ids: tokens that the run adds; their rows train, whatever else does.
        """
        ...

    def weights(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """What was trained, by name: the model's own tensors, tied ones under each of their names."""
        ...

    def save(self, model: nn.Module, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write what was trained so that plain PEFT or transformers loads it.

        Args:
            model: gives the configuration, and its own `weights` where none are given. Where they are, another thread
                may train it meanwhile.
            folder: gets the files; made where missing.
            weights: a copy of `weights(model)` from an earlier step.
        """
        ...

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put saved weights into a trainable model, bit for bit."""
        ...

    def load_trained(self, source: ModelSource, folder: Path, how: LoadSettings) -> nn.Module:
        """Base and saved weights as one model in evaluation mode; nothing requires gradients."""
        ...


@dataclass(frozen=True)
class ParameterCount:
    """How many weights train, and how many there are."""

    trainable: int
    total: int


def trainable_parameters(model: nn.Module) -> ParameterCount:
    """Weights that train and all weights, tied ones once, 4-bit ones by their number before quantisation."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return ParameterCount(trainable, total)
