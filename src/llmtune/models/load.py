"""Base weights from a model's folder, in a stated type and place, and complete."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmtune.errors import ModelError
from llmtune.logs import say
from llmtune.models.quiet import no_progress_bars
from llmtune.models.source import ModelSource, weight_files
from llmtune.models.vocabulary import adapt_model

_SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class LoadSettings:
    """How base weights are to stand in memory."""

    compute_dtype: torch.dtype
    """Type of the matrix products."""
    device: torch.device
    """Where the weights go."""
    attention: str | None = None
    """transformers' name of an attention implementation, `models.attention` switches it after loading; None is its own
    choice: `sdpa`, or `eager` for architectures that can't have that."""


def load_base(
    source: ModelSource,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    device: torch.device,
    quantization: Any | None = None,
    folder: Path | None = None,
) -> PreTrainedModel:
    """A causal language model with all its weights, in evaluation mode, its vocabulary as the run changes it.

    Args:
        source: the model.
        dtype: type of the weights (of those that aren't quantised).
        attention: transformers' name of the attention implementation; None leaves the choice to it.
        device: where the weights go.
        quantization: transformers' quantisation config; None for none.
        folder: trained weights of the same architecture that are read instead of the source's own.

    Raises:
        ModelError: it is no causal language model that transformers knows, or weights are missing or left over.
    """
    where = folder or source.folder
    try:
        with no_progress_bars():
            model, report = cast(Any, AutoModelForCausalLM).from_pretrained(
                where,
                dtype=dtype,
                attn_implementation=attention,
                device_map={"": device},
                quantization_config=quantization,
                use_safetensors=True,
                trust_remote_code=source.trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(f"{source.name} can't be loaded from {where}: {error}") from error
    _check_complete(source, where, report)
    model.config._name_or_path = model.name_or_path = source.location
    model.config._commit_hash = source.revision
    adapt_model(model, source.vocabulary, has_rows=folder is not None)
    return model


def checkpoint_dtype(source: ModelSource) -> torch.dtype:
    """The type in which most of a model's weights are stored; float32 where it is none that torch computes in."""
    sizes: Counter[str] = Counter()
    for path in weight_files(source.folder):
        for entry in safetensors_header(path).values():
            sizes[entry["dtype"]] += entry["data_offsets"][1] - entry["data_offsets"][0]
    name = sizes.most_common(1)[0][0] if sizes else "F32"
    return _SAFETENSORS_DTYPES.get(name, torch.float32)


def device_for_float32(source: ModelSource, device: torch.device) -> torch.device:
    """The device for a model in float32: the given one, or the CPU, said aloud, where a GPU's free memory is too small.

    Half as much again as the weights is asked for, so that merging and short examples fit too.
    """
    if device.type != "cuda":
        return device
    needed = 1.5 * 4 * num_weights(source)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    if needed <= free:
        return device
    say(
        f"{source.name} in float32 needs about {needed / 2**30:.1f} GiB and the GPU has {free / 2**30:.1f} GiB free: "
        "merged and checked on the CPU, which takes longer"
    )
    return torch.device("cpu")


def num_weights(source: ModelSource) -> int:
    """How many numbers a model's files hold; only their headers are read."""
    headers = (safetensors_header(path) for path in weight_files(source.folder))
    return sum(math.prod(entry["shape"]) for header in headers for entry in header.values())


def frozen_dtype(source: ModelSource, how: LoadSettings) -> torch.dtype:
    """The type of weights that don't train.

    float32 for float32 products; else the checkpoint's own on a CPU (autocast casts the products' inputs), and the
    products' type on a GPU (half the memory).
    """
    if how.compute_dtype == torch.float32:
        return torch.float32
    if how.device.type != "cpu":
        return how.compute_dtype
    stored = checkpoint_dtype(source)
    return stored if stored in (torch.float32, torch.bfloat16) else torch.float32


def load_frozen(source: ModelSource, how: LoadSettings, quantization: Any | None = None) -> PreTrainedModel:
    """The base model as it stands where its weights don't train; see `load_base`."""
    dtype = frozen_dtype(source, how)
    base = load_base(source, dtype=dtype, attention=how.attention, device=how.device, quantization=quantization)
    return base.requires_grad_(False)


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """A safetensors file's tensors: name to dtype, shape and data offsets; no tensor is read.

    Raises:
        ModelError: the file is of another kind, or its end is missing.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        missing = 8 + length + end - size
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ModelError(f"{path} isn't a readable safetensors file; download it again") from None
    if missing > 0:
        raise ModelError(f"{path} isn't a readable safetensors file ({missing} bytes are missing); download it again")
    return tensors


def _check_complete(source: ModelSource, where: Path, report: dict[str, Any]) -> None:
    """Refuse a model of which weights were made up or left unread (a tied head is neither)."""
    words = {
        "missing_keys": "missing from the files (they would be random)",
        "unexpected_keys": "in the files but not in the model",
        "mismatched_keys": "of another shape than the model's",
        "error_msgs": "not convertible",
    }
    problems = []
    for kind, meaning in words.items():
        names = sorted(str(name) for name in report.get(kind) or [])
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            problems.append(f"{len(names)} weights are {meaning}: {shown}")
    if problems:
        raise ModelError(
            f"{source.name} in {where} doesn't fit its config.json: {'; '.join(problems)}; "
            "use a complete copy of a causal language model"
        )
