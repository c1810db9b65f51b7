"""Runs a GGUF file by transformers' own reader where llama.cpp isn't installed, so that an export can be checked.

Weights come from transformers' reader, which turns them back to float32. It leaves out part of what the file says of
the model (softcaps, the size of heads, scaled rotary embeddings, biases) and takes its own defaults for it, and it cuts
text by GPT-2's rule where it doesn't know the file's; so those are read here, from the file as well.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES, load_gguf_checkpoint

from llmtune.export.gguf_files.architecture import Architecture
from llmtune.export.gguf_files.file_text import FileText
from llmtune.export.shipped.transformers_model import CachedModel
from llmtune.models.quiet import no_progress_bars

_WINDOWED_BASE = 10000.0
"""llama.cpp's base of rotary embeddings in layers with a window, where the file names none."""


def can_read(architecture: Architecture) -> bool:
    """Whether transformers' reader knows an architecture."""
    return architecture.name in GGUF_SUPPORTED_ARCHITECTURES


class Runtime(CachedModel):
    """The one .gguf file of a folder in transformers, in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        (file,) = sorted(folder.glob("*.gguf"))
        said = read_metadata(file)
        with no_progress_bars():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=file.name,
                config=_config(file, said),
                dtype=torch.float32,
                attn_implementation="eager",
            ).eval()
        _scale_frequencies(model, said)
        text: Any = FileText(said)
        super().__init__(model, text)


def read_metadata(file: Path) -> dict[str, Any]:
    """Everything that a file says beside its matrices, by key; vectors' names lead to their values."""
    reader = gguf.GGUFReader(file)
    said: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
    vectors = [tensor for tensor in reader.tensors if len(tensor.shape) == 1]
    said.update({tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in vectors})
    said.update({tensor.name: None for tensor in reader.tensors if len(tensor.shape) > 1})
    return said


def _config(file: Path, said: dict[str, Any]) -> PreTrainedConfig:
    """What transformers' reader makes of the file, completed by what it leaves out."""
    values = load_gguf_checkpoint(str(file))["config"]
    name = said["general.architecture"]
    own = {key.removeprefix(f"{name}."): value for key, value in said.items() if key.startswith(f"{name}.")}
    if name == "gpt2":
        return AutoConfig.for_model(
            **{**values, "n_positions": own["context_length"], "n_inner": own["feed_forward_length"]}
        )
    values["head_dim"] = own["attention.key_length"]
    values["rope_parameters"] = _rope(own, windowed=name == "gemma3")
    values.pop("rope_theta", None)
    values["attention_bias"] = "blk.0.attn_output.bias" in said
    values["mlp_bias"] = "blk.0.ffn_up.bias" in said
    values["attn_logit_softcapping"] = own.get("attn_logit_softcapping")
    values["final_logit_softcapping"] = own.get("final_logit_softcapping") or None
    if "attention.sliding_window" in own:
        values["sliding_window"] = own["attention.sliding_window"]
        values["query_pre_attn_scalar"] = _scale(name, own)
    return AutoConfig.for_model(**values)


def _scale(name: str, own: dict[str, Any]) -> int:
    """By whose root llama.cpp divides attention scores."""
    if own["block_count"] == {"gemma2": 46, "gemma3": 62}[name]:
        return own["embedding_length"] // own["attention.head_count"]
    return own["attention.key_length"]


def _rope(own: dict[str, Any], *, windowed: bool) -> dict[str, Any]:
    names = {
        "rope.freq_base": "rope_theta",
        "rope.scaling.type": "rope_type",
        "rope.scaling.factor": "factor",
        "rope.scaling.original_context_length": "original_max_position_embeddings",
        "rope.scaling.yarn_beta_fast": "beta_fast",
        "rope.scaling.yarn_beta_slow": "beta_slow",
    }
    full = {"rope_type": "default", **{name: own[key] for key, name in names.items() if key in own}}
    if not windowed:
        return full
    base = own.get("rope.freq_base_swa", _WINDOWED_BASE)
    return {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": base}}


def _scale_frequencies(model: PreTrainedModel, said: dict[str, Any]) -> None:
    """Divide the rotary embeddings' frequencies as the file's `rope_freqs` say."""
    factors = said.get("rope_freqs.weight")
    if factors is not None:
        rotary: Any = model.get_decoder().rotary_emb  # pyright: ignore[reportCallIssue]
        rotary.inv_freq = rotary.inv_freq / torch.from_numpy(factors)
