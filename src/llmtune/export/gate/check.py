"""The gate: no export is done before it answered, from disk and in its own runtime, as the trained model does."""

import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig

from llmtune.export.format import Compared, ExportContext, ExportFormat
from llmtune.export.gate.answering import AnsweringRuntime, losses
from llmtune.export.gate.answers import Answers, Asked, answers_here, answers_of, start_asking
from llmtune.export.gate.comparison import compare
from llmtune.export.gate.questions import Questions, Reach, answers_bytes, make_questions
from llmtune.export.merge import load_unmerged
from llmtune.export.report import Figure, ParityReport
from llmtune.export.room import check_room
from llmtune.export.shipped.transformers_model import CachedModel, TransformersText
from llmtune.models.attention import underlying_model
from llmtune.models.load import LoadSettings
from llmtune.models.prompting import stop_token_ids
from llmtune.models.source import max_positions, own_vocab_size

_OTHER = {"original": "dequantized", "dequantized": "original"}


class Gate:
    """Holds every export of one trained model against it; the trained model is asked once.

    Args:
        context: the trained model.
        work: folder for what passes between processes; it is made anew and removed by `close`.
    """

    def __init__(self, context: ExportContext, work: Path) -> None:
        self._context = context
        self._work = work
        self._asked: dict[Compared, Answers] = {}
        shutil.rmtree(work, ignore_errors=True)
        check_room(work, 2 * answers_bytes(self._vocabulary), "what a check writes")
        start_asking()

    def check(self, chosen: ExportFormat, folder: Path) -> ParityReport:
        """Put the questions to an export in its own process, and compare its answers with the trained model's.

        Raises:
            ExportCheckFailed: it doesn't run.
        """
        context = self._context
        trained = self._trained(chosen.compared_with)
        _free_gpu()
        asked = Asked(folder, chosen.judge, chosen.runtime_options(context))
        exported = answers_of(asked, self._questions, self._fresh(chosen.name))
        bounds = chosen.bounds(context)
        figures = [*chosen.more_figures(context, folder), *compare(trained, exported, bounds)]
        if context.method.name == "qlora" and chosen.compared_with is Compared.UNMERGED:
            tuned = trained if chosen.is_quantised else exported
            figures += self._step_from_four_bits(tuned.loss)
        shutil.rmtree(self._work / chosen.name)
        num = len(self._questions.prompts)
        return ParityReport(
            tuple(figures),
            f"{chosen.runtime_words}, in a process of its own, beside {self._reference_words(chosen.compared_with)}; "
            f"{num} prompts and {len(self._questions.examples)} examples of the {context.split} split",
            bounds.why,
        )

    def close(self) -> None:
        """Remove what passed between processes."""
        shutil.rmtree(self._work, ignore_errors=True)

    @property
    def _vocabulary(self) -> int:
        return max(own_vocab_size(self._context.source), len(cast(Any, self._context.tokenizer)))

    @cached_property
    def _questions(self) -> Questions:
        context = self._context
        reach = Reach(max_positions(context.source), attention_window(context.subject.config))
        return make_questions(context.examples, context.tokenizer, reach, self._vocabulary)

    def _trained(self, which: Compared) -> Answers:
        if self._context.method.name != "qlora":
            which = Compared.UNMERGED  # the model as it was trained is the unmerged one: it is asked once
        if which not in self._asked:
            runtime = self._runtime(self._load(which))
            self._asked[which] = answers_here(runtime, self._questions, self._fresh("trained"))
            shutil.rmtree(self._work / "trained")
        return self._asked[which]

    def _load(self, which: Compared) -> nn.Module:
        context = self._context
        if which is Compared.UNMERGED:
            return load_unmerged(context)
        how = LoadSettings(compute_dtype=torch.float32, device=context.device)
        return context.method.load_trained(context.source, context.checkpoint, how)

    def _runtime(self, model: nn.Module) -> AnsweringRuntime:
        context = self._context
        ends = stop_token_ids(underlying_model(model).generation_config, context.tokenizer)
        return CachedModel(model, TransformersText(context.tokenizer, ends, max_positions(context.source)))

    def _fresh(self, name: str) -> Path:
        folder = self._work / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _reference_words(self, which: Compared) -> str:
        if which is Compared.TRAINED:
            return "the trained model in float32"
        base = f"the {self._context.settings.merge_base} base" if self._context.method.name == "qlora" else "the base"
        return (
            f"the unmerged model on {base} in float32" if self._context.has_adapter else "the trained model in float32"
        )

    def _step_from_four_bits(self, tuned_loss: float | None) -> Iterator[Figure]:
        """What the step from the trained 4-bit base to the base merged into costs, on either base."""
        four_bits, others = self._four_bit_losses
        if tuned_loss is None or four_bits is None:
            yield Figure("loss_missing", 1.0, 0.0, "1 where no example has a token to learn", "use other examples")
            return
        chosen = self._context.settings.merge_base
        cure = (
            f"the adapter learnt to mend its 4-bit base; export.merge_base={_OTHER[chosen]} changes the loss by "
            f"{others[_OTHER[chosen]] - four_bits:+.3g}; or ship export.formats=[adapter] for use on the 4-bit base, "
            "train with method=lora, or raise export.max_loss_rise"
        )
        yield Figure("loss_trained_4bit", four_bits, None, "loss of the trained 4-bit model, nats per token")
        for base, loss in others.items():
            yield Figure(f"loss_on_{base}_base", loss, None, f"loss of the adapter on the {base} base, nats per token")
        yield Figure(
            "loss_rise_from_4bit",
            tuned_loss - four_bits,
            self._context.settings.max_loss_rise,
            f"rise of the loss from the trained 4-bit model to the {chosen} base, nats",
            cure,
        )

    @cached_property
    def _four_bit_losses(self) -> tuple[float | None, dict[str, float]]:
        """Loss of the trained 4-bit model in the precision of training, and of its adapter on both bases."""
        context = self._context
        how = LoadSettings(compute_dtype=context.precision.compute_dtype, device=context.device)
        with context.precision.autocast():
            four_bits = self._loss(context.method.load_trained(context.source, context.checkpoint, how))
        others: dict[str, float] = {}
        for base in _OTHER:
            own = self._asked.get(Compared.UNMERGED) if base == context.settings.merge_base else None
            loss = own.loss if own is not None else self._loss(load_unmerged(context, base))
            others[base] = float("nan") if loss is None else loss
        return four_bits, others

    def _loss(self, model: nn.Module) -> float | None:
        found = losses(self._runtime(model), self._questions.examples)
        return float(found.mean()) if len(found) else None


def attention_window(config: PreTrainedConfig) -> int | None:
    """How far back a model's attention looks in some of its layers; None where all look back to the beginning."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None)
    return window if kinds is None or "sliding_attention" in kinds else None


def _free_gpu() -> None:
    """Leave the GPU's memory to the process that is asked."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
