"""`adapter`: the trained adapter alone, as PEFT loads it beside its base model."""

import shutil
from pathlib import Path

import torch
from peft import PeftModel

from llmtune.errors import UserError
from llmtune.export.format import ExportContext
from llmtune.export.model_card import base_reference
from llmtune.export.parity import SAME_FILES, compare, parity_prompts, probe
from llmtune.export.report import ParityReport
from llmtune.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from llmtune.models.load import LoadSettings
from llmtune.models.source import own_vocab_size

_FILES = (CONFIG_FILE, WEIGHTS_FILE)
_TOKENIZER_BYTES = 16 * 2**20


class AdapterFormat:
    """PEFT's two files, the tokenizer and a model card."""

    name = "adapter"

    def check_supported(self, context: ExportContext) -> None:
        """Refuse a model whose own weights trained.

        Raises:
            UserError: there is no adapter.
        """
        if not context.has_adapter:
            raise UserError(
                f"export.formats: adapter needs an adapter, and method={context.method.name} trains the whole model; "
                "set export.formats=[hf]"
            )

    def num_bytes(self, context: ExportContext) -> int:
        """The adapter's own size and room for a tokenizer."""
        return sum((context.checkpoint / name).stat().st_size for name in _FILES) + _TOKENIZER_BYTES

    def write(self, context: ExportContext, folder: Path) -> None:
        """Copy the adapter as it was trained, and save the tokenizer with its chat template."""
        for name in _FILES:
            shutil.copyfile(context.checkpoint / name, folder / name)
        context.tokenizer.save_pretrained(folder)

    def check(self, context: ExportContext, folder: Path) -> ParityReport:
        """Load the files with plain PEFT on the base as it was trained on, and compare with the trained model."""
        device = context.device if context.method.name == "qlora" else context.float32_device
        how = LoadSettings(compute_dtype=torch.float32, device=device)
        trained_model = context.method.load_trained(context.source, context.checkpoint, how)
        positions = getattr(trained_model.config, "max_position_embeddings", None)
        prompts = parity_prompts(context.examples, positions)
        trained = probe(trained_model, prompts, context.tokenizer)
        del trained_model
        base = context.method.load(context.source, how)
        exported = probe(PeftModel.from_pretrained(base, str(folder)).eval(), prompts, context.tokenizer)
        return ParityReport(
            tuple(compare(trained, exported, SAME_FILES)),
            f"adapter loaded by PEFT beside the trained model, float32 products, "
            f"{len(prompts)} {context.split} examples",
        )

    def loading_code(self, context: ExportContext) -> str:
        """PEFT on the base model, quantised as in training where it was."""
        base, revision = base_reference(context.source)
        arguments = [f'"{base}"', *([f'revision="{revision}"'] if revision else []), 'dtype="auto"']
        imports = ["AutoModelForCausalLM", "AutoTokenizer"]
        if context.method.name == "qlora":
            kind = context.facts.method.get("quant_type", "nf4")
            double = bool(context.facts.method.get("double_quant", True))
            arguments.append(
                "quantization_config=BitsAndBytesConfig(\n"
                f'    load_in_4bit=True, bnb_4bit_quant_type="{kind}", bnb_4bit_use_double_quant={double}\n)'
            )
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
