"""`hf`: one plain model in transformers' format, adapter merged in."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from llmtune.export.companions import write_companions
from llmtune.export.format import ExportContext, ExportFormat
from llmtune.export.merge import load_merged
from llmtune.export.report import Bounds, Figure
from llmtune.models.load import checkpoint_dtype
from llmtune.models.quiet import no_progress_bars
from llmtune.models.source import weight_files

_SMALL_FILES_BYTES = 16 * 2**20
_ROUNDED = (
    "about ten times what {} in place of float32 does to a 135M model on descriptions of Python packages, text that no "
    "check uses; the bits of the files are compared by themselves"
)
_BOUNDS = {
    torch.float32: Bounds(
        "the same weights merged, so only the order of sums may differ", logits=1e-4, largest_kl=1e-6
    ),
    # Mean KL 1.9e-3 and 4.0e-3 on two halves of that text, loss -1.0e-3 and +1.1e-3 with a standard error of 2e-3.
    torch.bfloat16: Bounds(_ROUNDED.format("bfloat16"), mean_kl=0.02, loss_rise=0.02),
    # Mean KL 3.1e-5 and 5.3e-5, loss +1.4e-4 and +2.6e-4 with a standard error of 2e-4.
    torch.float16: Bounds(_ROUNDED.format("float16"), mean_kl=3e-4, loss_rise=2e-3),
}


class HuggingFaceFormat(ExportFormat):
    """Safetensors, config, generation config, tokenizer with chat template, and a model card."""

    name = "hf"
    runtime = "hf"
    packages = "transformers torch"

    def __init__(self) -> None:
        self._merged: dict[str, str] = {}

    def num_bytes(self, context: ExportContext) -> int:
        """The base's own size: the merged weights are as many and of the same type."""
        return sum(path.stat().st_size for path in weight_files(context.source.folder)) + _SMALL_FILES_BYTES

    def write(self, context: ExportContext, folder: Path) -> None:
        """Merge in the type of the base's own weights, and save in shards."""
        model = load_merged(context, dtype=None)
        self._merged = {name: _digest(tensor) for name, tensor in model.state_dict().items()}
        with no_progress_bars():
            model.save_pretrained(folder, max_shard_size=context.settings.max_shard_size)
        write_companions(context, model, folder)

    def bounds(self, context: ExportContext) -> Bounds:
        """By the type of the weights."""
        return _BOUNDS.get(checkpoint_dtype(context.source), _BOUNDS[torch.float32])

    def runtime_options(self, context: ExportContext) -> dict[str, Any]:
        """Where the trained model was asked."""
        return {"device": str(context.float32_device)}

    def more_figures(self, context: ExportContext, folder: Path) -> list[Figure]:
        """Whether the files hold the merged weights, bit for bit, and tied ones once, as the config says."""
        del context
        stored = changed = 0
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # not a mapping
                    tensor = file.get_tensor(name)
                    stored += tensor.numel()
                    changed += _digest(tensor) != self._merged.get(name)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        kept = set(model.state_dict())
        expected = sum(weight.numel() for weight in model.parameters())
        expected += sum(buffer.numel() for name, buffer in model.named_buffers() if name in kept)
        beyond = "weights in the files beyond those of the architecture, tied ones once"
        parted = "export again, and report it if it stays: a tied weight was parted, or one was lost"
        damaged = "export again; if it stays, look at the disk and the memory of this machine"
        return [
            Figure("weights_beyond", float(abs(stored - expected)), 0.0, beyond, parted),
            Figure(
                "tensors_changed",
                float(changed),
                0.0,
                "tensors of another name or with another bit than merged",
                damaged,
            ),
        ]

    def loading_code(self, context: ExportContext) -> str:
        """Plain transformers."""
        del context
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
        )


def _digest(tensor: torch.Tensor) -> str:
    """Hex SHA-256 of a tensor's values as they are stored."""
    values: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(values).hexdigest()
