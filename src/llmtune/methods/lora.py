"""LoRA: low-rank adapters train beside frozen weights."""

from transformers import PreTrainedModel

from llmtune.methods.adapter_method import AdapterMethod
from llmtune.models.load import LoadSettings, frozen_dtype, load_base
from llmtune.models.source import ModelSource


class LoraMethod(AdapterMethod):
    """Adapters in float32 on a frozen base (https://arxiv.org/abs/2106.09685)."""

    name = "lora"

    def load(self, source: ModelSource, how: LoadSettings) -> PreTrainedModel:
        """The base, frozen later by PEFT; on a CPU in the checkpoint's type, on a GPU in that of the products."""
        dtype = frozen_dtype(source, how)
        return load_base(source, dtype=dtype, attention=how.attention, device=how.device)
