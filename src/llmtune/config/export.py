"""`export`: the form in which the tuned model is shipped."""

import re
from typing import Literal

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, NonNegativeFloat, Text

EXPORT_FORMATS = {
    "adapter": "llmtune.export.adapter:AdapterFormat",
    "hf": "llmtune.export.hf:HuggingFaceFormat",
    "onnx": "llmtune.export.onnx:OnnxFormat",
    "onnx_int8": "llmtune.export.onnx_int8:OnnxInt8Format",
    "onnx_int4": "llmtune.export.onnx_int4:OnnxInt4Format",
    "torchscript": "llmtune.export.torchscript:TorchScriptFormat",
    "torch_export": "llmtune.export.torch_export:TorchExportFormat",
    "gguf": "llmtune.export.gguf:GgufFormat",
    "gguf_q8_0": "llmtune.export.gguf_q8_0:GgufQ80Format",
    "gguf_q4_k_m": "llmtune.export.gguf_q4_k_m:GgufQ4KMFormat",
}
"""Every format's name and `module:class`; the module is imported when the format is asked for."""

REGISTERED_FORMAT = "hf"
"""The format whose folder `export.register` registers."""
MODEL_NAME = re.compile(r"\w[\w .-]{0,199}")
"""Names that a model may have in MLflow's registry."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ExportConfig:
    """Formats, each written to a subfolder of its own and checked after reloading."""

    formats: tuple[str, ...] | None = None
    """Formats to write: `adapter`, `hf`, `onnx`, `onnx_int8`, `onnx_int4`, `torchscript`, `torch_export`, `gguf`,
    `gguf_q8_0`, `gguf_q4_k_m`. null is the first two, `hf` alone for full fine-tuning."""
    path: Text | None = None
    """Folder that gets a subfolder a format; null is `exports` in the run folder."""
    overwrite: bool = False
    """Whether a format's folder that isn't empty is replaced."""
    merge_base: Literal["original", "dequantized"] = "original"
    """What a QLoRA adapter is merged into: the `original` base, or the `dequantized` one, that is the 4-bit weights
    written out, which the adapter was trained beside. Both are measured; the choice is recorded."""
    max_loss_rise: NonNegativeFloat = 0.02
    """Nats per token by which a merged QLoRA model may be worse than the trained 4-bit one on held-out text."""
    max_shard_size: str = "5GB"
    """Largest weight file of the `hf` format."""
    register: Text | None = None
    """Name in MLflow's model registry that the checked `hf` export becomes the newest version of, with the alias
    `proven`. null registers nothing."""
    push_to_hub: Text | None = None
    """Repository on the Hugging Face Hub, `name` or `owner/name`, that the checked export is uploaded to: the `hf`
    format, or `adapter` where that is the only one. null uploads nothing."""
    hub_private: bool = True
    """Whether that repository is private: a new one is made so, and one that everybody sees is refused."""
