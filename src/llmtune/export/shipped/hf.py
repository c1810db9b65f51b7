"""The model in this folder in transformers; needs `torch` and `transformers`."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers_model import (  # pyright: ignore[reportMissingImports]  # it stands beside this file
    CachedModel,
    best_device,
    text_of,
)


class Runtime(CachedModel):
    """The model in a folder.

    Args:
        folder: with config, safetensors weights and tokenizer.
        dtype: of the weights; `auto` is that of the files.
        device: None is a GPU where there is one.
    """

    def __init__(self, folder: Path, dtype: str = "auto", device: str | None = None) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        model = model.to(best_device(device)).eval()
        super().__init__(model, text_of(model, AutoTokenizer.from_pretrained(folder)))
