"""`hf`: one plain model in transformers' format, adapter merged in."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from llmtune.export.format import ExportContext
from llmtune.export.merge import load_merged, load_unmerged
from llmtune.export.parity import MERGED, Bounds, compare, examples_loss, parity_prompts, probe
from llmtune.export.report import Figure, ParityReport
from llmtune.models.load import LoadSettings, checkpoint_dtype
from llmtune.models.precision import Precision
from llmtune.models.prompting import stop_token_ids
from llmtune.models.quiet import no_progress_bars
from llmtune.models.source import weight_files

_SMALL_FILES_BYTES = 16 * 2**20
_FULL_PRECISION = "fp32"


class HuggingFaceFormat:
    """Safetensors, config, generation config, tokenizer with chat template, and a model card."""

    name = "hf"

    def check_supported(self, context: ExportContext) -> None:
        """Every trained model can be shipped this way."""

    def num_bytes(self, context: ExportContext) -> int:
        """The base's own size: the merged weights are as many and of the same type."""
        return sum(path.stat().st_size for path in weight_files(context.source.folder)) + _SMALL_FILES_BYTES

    def write(self, context: ExportContext, folder: Path) -> None:
        """Merge on the unquantised base and save."""
        model = load_merged(context)
        model.generation_config = true_generation_config(model, context)
        with no_progress_bars():
            model.save_pretrained(folder, max_shard_size=context.settings.max_shard_size)
        context.tokenizer.save_pretrained(folder)

    def check(self, context: ExportContext, folder: Path) -> ParityReport:
        """Load the folder with plain transformers and compare with the unmerged model on the same base in float32."""
        dtype = checkpoint_dtype(context.source)
        bounds = MERGED.get(dtype, MERGED[torch.float32])
        float32 = Precision(_FULL_PRECISION, context.float32_device.type, "for comparison")
        unmerged = load_unmerged(context)
        prompts = parity_prompts(context.examples, getattr(unmerged.config, "max_position_embeddings", None))
        trained = probe(unmerged, prompts, context.tokenizer)
        trained_loss = examples_loss(unmerged, context, float32) if bounds.loss_rise is not None else None
        del unmerged
        exported, files = _reload(folder, context.float32_device)
        figures = [*files, *compare(trained, probe(exported, prompts, context.tokenizer), bounds)]
        if trained_loss is not None:
            figures += _rounding_figures(trained_loss, examples_loss(exported, context, float32), bounds)
        if context.method.name == "qlora":
            same_device = context.float32_device == context.device
            merged_loss = examples_loss(exported, context, context.precision if same_device else float32)
            del exported
            figures += _quantisation_figures(context, merged_loss)
        return ParityReport(
            tuple(figures),
            f"{str(dtype).removeprefix('torch.')} weights loaded by transformers beside the unmerged model on the same "
            f"base in float32, {len(prompts)} {context.split} examples",
        )

    def loading_code(self, context: ExportContext) -> str:
        """Plain transformers."""
        del context
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
        )


def true_generation_config(model: PreTrainedModel, context: ExportContext) -> GenerationConfig:
    """The base's generation settings with the tokens at which the tuned model's texts really end."""
    config = model.generation_config or GenerationConfig()
    stops = stop_token_ids(model, context.tokenizer)
    config.eos_token_id = stops if len(stops) > 1 else stops[0]
    if config.pad_token_id is None:
        config.pad_token_id = context.tokenizer.pad_token_id
    if config.temperature is not None or config.top_p is not None or config.top_k is not None:
        config.do_sample = True  # sampling settings without sampling can't be saved
    return config


def _reload(folder: Path, device: torch.device) -> tuple[PreTrainedModel, list[Figure]]:
    """The exported model in the type of its files, and whether its weights are complete and tied as they say."""
    with no_progress_bars():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", attn_implementation="sdpa", device_map={"": device}, output_loading_info=True
        )
    model, report = loaded
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = sum(len(report.get(kind) or ()) for kind in kinds)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    lost = bool(model.config.get_text_config().tie_word_embeddings) and not tied
    cure = "export again, and report it if it stays"
    return model.eval(), [
        Figure("wrong_weights", float(wrong), 0.0, "weights that are missing, left over or of another shape", cure),
        Figure("tie_lost", float(lost), 0.0, "1 where embedding and output head no longer share a weight", cure),
    ]


def _rounding_figures(trained: float, exported: float, bounds: Bounds) -> list[Figure]:
    """What rounding the merged weights to 16 bits cost in loss."""
    cure = "the weights don't fit this type; start from a float32 copy of the base model"
    return [
        Figure("loss_unmerged", trained, None, "loss of the unmerged model in float32, nats per token"),
        Figure("loss_exported", exported, None, "loss of the export, nats per token"),
        Figure("loss_rise", exported - trained, bounds.loss_rise, "rise of the loss by rounding, nats", cure),
    ]


def _quantisation_figures(context: ExportContext, merged_loss: float) -> list[Figure]:
    """What the step from the trained 4-bit base to the base merged into costs in loss."""
    how = LoadSettings(compute_dtype=context.precision.compute_dtype, device=context.device)
    trained = context.method.load_trained(context.source, context.checkpoint, how)
    loss = examples_loss(trained, context, context.precision)
    cure = (
        "the adapter learnt to mend its 4-bit base; ship export.formats=[adapter] for use on the 4-bit base, train "
        "with method=lora, or raise export.max_loss_rise"
    )
    return [
        Figure("loss_trained_4bit", loss, None, "loss of the trained 4-bit model, nats per token"),
        Figure("loss_merged", merged_loss, None, "loss of the merged model, nats per token"),
        Figure(
            "loss_rise_from_4bit",
            merged_loss - loss,
            context.settings.max_loss_rise,
            "rise of the loss from the trained 4-bit model to the merged one, nats",
            cure,
        ),
    ]
