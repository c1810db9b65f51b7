"""`adapter`: the trained adapter alone, as PEFT loads it beside its base model."""

import json
import shutil
from pathlib import Path
from typing import Any

from llmtune.export.companions import save_tokenizer
from llmtune.export.format import Compared, ExportContext, ExportFormat, ExportSubject
from llmtune.export.model_card import base_reference
from llmtune.export.report import Bounds, Figure
from llmtune.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from llmtune.models.source import own_vocab_size
from llmtune.runs.manifest import write_json

_TOKENIZER_BYTES = 16 * 2**20


class AdapterFormat(ExportFormat):
    """PEFT's two files, the tokenizer, what the base model needs, and a model card."""

    name = "adapter"
    runtime = "adapter"
    packages = "torch transformers peft"
    library = "peft"
    compared_with = Compared.TRAINED

    def why_not(self, subject: ExportSubject) -> str | None:
        """Not where the model's own weights trained."""
        if subject.method in ("full", "none"):
            return f"needs an adapter, and method={subject.method} has none; take export.formats=[hf]"
        return None

    def needs(self, context: ExportContext) -> str:
        """With bitsandbytes where the base is in 4 bits."""
        return f"{self.packages} bitsandbytes" if context.method.name == "qlora" else self.packages

    def num_bytes(self, context: ExportContext) -> int:
        """The adapter's own size and room for a tokenizer."""
        return (context.checkpoint / WEIGHTS_FILE).stat().st_size + _TOKENIZER_BYTES

    def write(self, context: ExportContext, folder: Path) -> None:
        """Copy the adapter as it was trained, and save the tokenizer with its chat template."""
        shutil.copyfile(context.checkpoint / WEIGHTS_FILE, folder / WEIGHTS_FILE)
        settings = json.loads((context.checkpoint / CONFIG_FILE).read_text(encoding="utf-8"))
        source = context.source
        settings |= {"base_model_name_or_path": source.location, "revision": source.revision}
        write_json(folder / CONFIG_FILE, settings)
        write_json(folder / "base.json", _base(context))
        save_tokenizer(context, folder)

    def more_figures(self, context: ExportContext, folder: Path) -> list[Figure]:
        """Whether the files name the base model that it was compared on."""
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        told = json.loads((folder / "base.json").read_text(encoding="utf-8"))
        names = [(settings["base_model_name_or_path"], settings["revision"]), (told["model"], told["revision"])]
        wrong = sum(name != (context.source.location, context.source.revision) for name in names)
        meaning = "of 2 files, those that name another base model or commit"
        return [Figure("base_wrong", float(wrong), 0.0, meaning, "export again, and report it if it stays")]

    def bounds(self, context: ExportContext) -> Bounds:
        """The same weights in the same layers."""
        del context
        return Bounds("the same weights in the same layers, so only the order of sums may differ", 1e-5, 1e-6)

    def runtime_options(self, context: ExportContext) -> dict[str, Any]:
        """In float32, where rounding hides nothing, and on the device of the trained model."""
        device = context.device if context.method.name == "qlora" else context.float32_device
        return {"dtype": "float32", "device": str(device), "base": str(context.source.folder)}

    def loading_code(self, context: ExportContext) -> str:
        """PEFT on the base model, quantised as in training where it was."""
        base, revision = base_reference(context.source)
        arguments = [f'"{base}"', *([f'revision="{revision}"'] if revision else []), 'dtype="auto"']
        imports = ["AutoModelForCausalLM", "AutoTokenizer"]
        if quantization := _four_bits(context):
            settings = ", ".join(f"{key}={value!r}" for key, value in quantization.items())
            arguments.append(f"quantization_config=BitsAndBytesConfig(\n    load_in_4bit=True, {settings}\n)")
            imports.append("BitsAndBytesConfig")
        return "\n".join(
            [
                "from peft import PeftModel",
                f"from transformers import {', '.join(imports)}",
                "",
                f"base = AutoModelForCausalLM.from_pretrained({', '.join(arguments)})",
                *_vocabulary_code(context),
                'model = PeftModel.from_pretrained(base, "FOLDER")',
                'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            ]
        )


def _vocabulary_code(context: ExportContext) -> list[str]:
    """What the base model needs before the adapter fits: room for added tokens, and the token that ends an answer."""
    vocabulary, lines = context.source.vocabulary, []
    if vocabulary.num_rows > own_vocab_size(context.source):
        lines.append(f"base.resize_token_embeddings({vocabulary.num_rows}, mean_resizing=False)")
    if vocabulary.end_token_id is not None:
        lines.append(f"base.generation_config.eos_token_id = {vocabulary.end_token_id}")
    return lines


def _base(context: ExportContext) -> dict[str, Any]:
    """What `runtime.py` has to know of the base model."""
    source, stops = context.source, context.subject.end_token_ids
    return {
        "model": source.location,
        "revision": source.revision,
        "sha256": source.weights_digest,
        "quantization": _four_bits(context),
        "num_rows": source.vocabulary.num_rows,
        "end_token_ids": stops,
    }


def _four_bits(context: ExportContext) -> dict[str, Any] | None:
    """How the base was held in 4 bits while the adapter trained, as bitsandbytes' settings; None where it wasn't."""
    if context.method.name != "qlora":
        return None
    return {
        "bnb_4bit_quant_type": context.facts.method.get("quant_type", "nf4"),
        "bnb_4bit_use_double_quant": bool(context.facts.method.get("double_quant", True)),
    }
