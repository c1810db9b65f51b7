"""LoRA: low-rank adapters train beside frozen weights."""

from transformers import PreTrainedModel

from llmtune.methods.adapter_method import AdapterMethod
from llmtune.models.load import LoadSettings, load_frozen
from llmtune.models.source import ModelSource


class LoraMethod(AdapterMethod):
    """Adapters on a frozen base (https://arxiv.org/abs/2106.09685)."""

    name = "lora"

    def load(self, source: ModelSource, how: LoadSettings) -> PreTrainedModel:
        """The base, frozen later by PEFT; on a CPU in the checkpoint's type, on a GPU in that of the products."""
        return load_frozen(source, how)
