"""4-bit settings, and the check that a "4-bit" model really is one."""

import math

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from llmtune.config.method import QloraConfig
from llmtune.errors import ConfigError

LEAST_QUANTISED_SHARE = 0.5


def nf4_config(config: QloraConfig, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """Bitsandbytes' settings for a base in 4 bits; products are computed in `compute_dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quant_type,
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def keep_as_quantised(model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
    """Stop bitsandbytes from changing a frozen base while it is used.

    On CPUs with AVX512-BF16 its layers repack their weights at the first inference pass, rounding the quantisation
    constants (logits move by 1 % for good: what was trained is no longer what is measured); and every layer rounds its
    bias to the type of its input. The first is turned off by its own switch, the second done once, here.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            if module.bias is not None:
                module.bias.data = module.bias.data.to(compute_dtype)


def quantised_share(model: PreTrainedModel) -> float:
    """Share of the weights outside embeddings and output head that are held in 4 bits, from 0 to 1."""
    outside = {id(module) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    quantised = total = 0
    for module in model.modules():
        if id(module) in outside or isinstance(module, nn.Embedding):
            continue
        for parameter in module.parameters(recurse=False):
            state = getattr(parameter, "quant_state", None)
            count = math.prod(state.shape) if state is not None else parameter.numel()
            total += count
            quantised += count if state is not None else 0
    return quantised / total if total else 0.0


def check_quantised(model: PreTrainedModel, name: str) -> None:
    """Refuse a model of which bitsandbytes left most weights as they were (fused experts, unusual layers).

    Raises:
        ConfigError: less than half of the weights outside embeddings and head are in 4 bits.
    """
    share = quantised_share(model)
    if share < LEAST_QUANTISED_SHARE:
        raise ConfigError(
            f"method=qlora: only {share:.0%} of {name}'s weights outside embeddings and output head can be held in "
            f"4 bits (at least {LEAST_QUANTISED_SHARE:.0%} wanted; layers such as fused experts can't); use method=lora"
        )
