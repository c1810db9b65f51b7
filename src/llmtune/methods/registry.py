"""The methods by name."""

from typing import assert_never

import torch
from transformers import PreTrainedTokenizerBase

from llmtune.config.method import FullConfig, LoraConfig, MethodConfig, QloraConfig, UntrainedConfig
from llmtune.methods.full import FullMethod
from llmtune.methods.lora import LoraMethod
from llmtune.methods.method import Method
from llmtune.methods.qlora import QloraMethod
from llmtune.methods.untrained import UntrainedMethod


def make_method(
    config: MethodConfig, tokenizer: PreTrainedTokenizerBase | None = None, master_dtype: torch.dtype = torch.float32
) -> Method:
    """The method that a config describes.

    Args:
        config: its settings.
        tokenizer: is saved beside the weights; None where it is the base model's own.
        master_dtype: float32 or bfloat16; the type of the weights that train, see `Method.make_trainable`.
    """
    match config:
        case FullConfig():
            return FullMethod(config, tokenizer, master_dtype)
        case LoraConfig():
            return LoraMethod(config, tokenizer, master_dtype)
        case QloraConfig():
            return QloraMethod(config, tokenizer, master_dtype)
        case UntrainedConfig():
            return UntrainedMethod()
        case _:
            assert_never(config)
