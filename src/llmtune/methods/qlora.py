"""QLoRA: adapters train beside a base that is held in 4 bits."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmtune.config.method import QloraConfig
from llmtune.methods.adapter_method import AdapterMethod
from llmtune.models.load import LoadSettings, load_frozen
from llmtune.models.quantization import check_quantised, keep_as_quantised, nf4_config
from llmtune.models.source import ModelSource


class QloraMethod(AdapterMethod):
    """Adapters on a frozen 4-bit base (https://arxiv.org/abs/2305.14314).

    PEFT's `prepare_model_for_kbit_training` isn't called: it would turn every norm and the embeddings into float32
    (memory and speed for nothing, autocast already takes norms and losses in float32) and switch on reentrant
    checkpointing. What is needed of it happens elsewhere: `add_adapter` freezes the base, and activation checkpointing
    is non-reentrant, so gradients reach the adapters without gradients of the embeddings.
    """

    name = "qlora"

    def __init__(
        self,
        config: QloraConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        master_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(config, tokenizer, master_dtype)
        self._quantisation = config

    def load(self, source: ModelSource, how: LoadSettings) -> PreTrainedModel:
        """The base with its linear layers (but the head) in 4 bits, the rest in the frozen type.

        Raises:
            ConfigError: less than half of the weights outside embeddings and head can be held in 4 bits.
        """
        base = load_frozen(source, how, nf4_config(self._quantisation, how.compute_dtype))
        keep_as_quantised(base, how.compute_dtype)
        check_quantised(base, source.name)
        return base
