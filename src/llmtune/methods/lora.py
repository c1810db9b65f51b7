"""LoRA: low-rank adapters train beside frozen weights."""

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from llmtune.config.method import LoraConfig
from llmtune.methods.adapter import add_adapter, attach_adapter, restore_adapter, save_adapter
from llmtune.models.load import LoadSettings, frozen_dtype, load_base
from llmtune.models.source import ModelSource


class LoraMethod:
    """Adapters in float32 on a frozen base (https://arxiv.org/abs/2106.09685)."""

    name = "lora"

    def __init__(self, config: LoraConfig) -> None:
        self._config = config

    def load(self, source: ModelSource, how: LoadSettings) -> PreTrainedModel:
        """The base, frozen later by PEFT; on a CPU in the checkpoint's type, on a GPU in that of the products."""
        dtype = frozen_dtype(source, how)
        return load_base(source, dtype=dtype, attention=how.attention, device=how.device)

    def make_trainable(self, base: PreTrainedModel, seed: int) -> nn.Module:
        """The base with seeded float32 adapters, which alone train."""
        return add_adapter(base, self._config, seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        save_adapter(model, folder)

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put a saved adapter's weights back, bit for bit."""
        restore_adapter(model, folder)

    def load_trained(self, source: ModelSource, folder: Path, how: LoadSettings) -> nn.Module:
        """The base with a saved adapter, in evaluation mode."""
        return attach_adapter(self.load(source, how), folder)
