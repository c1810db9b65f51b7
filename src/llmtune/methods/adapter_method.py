"""What LoRA and QLoRA share: all but how the base is held."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmtune.config.method import AdapterConfig
from llmtune.methods.adapter import adapter_weights, add_adapter, attach_adapter, restore_adapter, save_adapter
from llmtune.models.load import LoadSettings
from llmtune.models.source import ModelSource


class AdapterMethod(ABC):
    """Adapters on a frozen base.

    Args:
        config: rank, scale, dropout and targets.
        tokenizer: is saved beside the adapter; None where it is the base model's own.
        master_dtype: type of the adapters while they train.
    """

    name: str

    def __init__(
        self,
        config: AdapterConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        master_dtype: torch.dtype = torch.float32,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._master_dtype = master_dtype

    @abstractmethod
    def load(self, source: ModelSource, how: LoadSettings) -> PreTrainedModel:
        """The base as the adapters train on it, in evaluation mode."""

    def make_trainable(self, base: PreTrainedModel, seed: int, new_ids: Sequence[int] = ()) -> nn.Module:
        """The base with seeded adapters, which alone train with the new tokens' rows."""
        return add_adapter(base, self._config, seed, new_ids, self._master_dtype)

    def weights(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The adapter's tensors, by PEFT's names."""
        return adapter_weights(model)

    def save(self, model: nn.Module, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write the adapter in PEFT's format."""
        save_adapter(model, folder, self.weights(model) if weights is None else weights)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put a saved adapter's weights back, bit for bit."""
        restore_adapter(model, folder)

    def load_trained(self, source: ModelSource, folder: Path, how: LoadSettings) -> nn.Module:
        """The base with a saved adapter in float32, which holds every master type's values, in evaluation mode."""
        return attach_adapter(self.load(source, how), folder)
