"""The adapter in this folder on its base model; needs `torch`, `transformers`, `peft`, and `bitsandbytes` for 4 bits.

`base.json` names the base model: a Hub id with its commit, or a folder of the machine that trained.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers_model import (  # pyright: ignore[reportMissingImports]  # it stands beside this file
    CachedModel,
    best_device,
    text_of,
)


class Runtime(CachedModel):
    """The adapter in a folder beside its base model, which is in 4 bits where it was in training.

    Args:
        folder: PEFT's files, the tokenizer, and `base.json`.
        dtype: of the base's weights; `auto` is that of its files.
        device: None is a GPU where there is one.
        base: the base model's folder or Hub id; None is what `base.json` names.
    """

    def __init__(self, folder: Path, dtype: str = "auto", device: str | None = None, base: str | None = None) -> None:
        told = json.loads((folder / "base.json").read_text(encoding="utf-8"))
        base = base or str(told["model"])
        if Path(base).is_absolute() and not Path(base).exists():
            raise FileNotFoundError(f"the base model {base} isn't there; write its folder or Hub id into base.json")
        place = {"": best_device(device)}
        model: Any = AutoModelForCausalLM.from_pretrained(
            base,
            revision=told["revision"] if base == told["model"] else None,
            dtype=dtype,
            device_map=place,
            use_safetensors=True,
            quantization_config=_four_bits(told["quantization"], dtype),
        )
        _keep_as_quantised(model)
        if told["num_rows"] > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(told["num_rows"], mean_resizing=False)
        model.generation_config.eos_token_id = told["end_token_ids"]
        model = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=True).eval()
        super().__init__(model, text_of(model, AutoTokenizer.from_pretrained(folder)))


def _four_bits(settings: dict[str, Any] | None, dtype: str) -> BitsAndBytesConfig | None:
    if settings is None:
        return None
    compute = torch.float32 if dtype == "float32" else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute, **settings)


def _keep_as_quantised(model: Any) -> None:
    """Some CPUs' layers repack their 4-bit weights when they are first used, which moves the logits by 1 %."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
