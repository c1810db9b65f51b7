"""A model measured: its loss on the test set and on general text, and what it writes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from llmtune import distributed
from llmtune.data.preparing.general import GeneralText
from llmtune.evaluation.generation import GenerationSettings, generate_texts
from llmtune.evaluation.perplexity import LossReport, LossSettings, evaluate_loss, write_predictions
from llmtune.evaluation.samples import SamplePrompt
from llmtune.logs import say
from llmtune.models.attention import attention_of
from llmtune.stages.context import RunContext
from llmtune.stages.training_choices import attention_for_evaluation
from llmtune.training.collectives import wait_for_all


@dataclass(frozen=True)
class Measured:
    """What one model came to."""

    test: LossReport
    general: LossReport | None
    """None where there is no general text."""
    answers: list[str]
    """To the prompts; empty but in the first process."""

    def figures(self) -> dict[str, float]:
        """The figures on the test set, by name."""
        return {
            "loss": self.test.loss,
            "perplexity": self.test.perplexity,
            "bits_per_byte": self.test.bits_per_byte,
            "tokens_per_second": self.test.tokens_per_second,
            "seconds": self.test.seconds,
            "num_examples": self.test.num_examples,
            "num_supervised_tokens": self.test.num_supervised_tokens,
        }


def measure(context: RunContext, model: nn.Module, name: str, prompts: list[SamplePrompt]) -> Measured:
    """Measure a model; every process takes part.

    Args:
        context: the run's.
        model: the base model or the trained one.
        name: which, for what is said.
        prompts: what it goes on from.
    """
    attention = attention_for_evaluation(context, model)
    settings = LossSettings(
        batch_tokens=context.config.evaluate.batch_tokens,
        packed=attention.packed,
        pad_token_id=context.pad_token_id,
        precision=context.precision,
        device=context.device,
        description=f"evaluate ({name})",
    )
    test = evaluate_loss(model, context.data.test, settings)
    say(f"{name}: loss {test.loss:.4f}, perplexity {test.perplexity:.2f} ({attention_of(model)})")
    general = None
    if context.general is not None:
        general = evaluate_loss(model, context.general.table, replace(settings, description=f"general text ({name})"))
        say(f"{name}: loss {general.loss:.4f} on general text ({context.general.source})")
    answers = _answers(context, model, prompts) if distributed.is_first() else []
    wait_for_all()
    return Measured(test, general, answers)


def write_measured(context: RunContext, measured: Mapping[str, Measured]) -> None:
    """Write each model's losses, example by example, by the model's name."""
    clusters = context.data.test_clusters()
    for name, found in measured.items():
        write_predictions(found.test, context.data.test, clusters, context.folder.predictions_file(name))
        general = context.general
        if general is not None and found.general is not None:
            file = context.folder.predictions_file(f"general_{name}")
            write_predictions(found.general, general.table, general.clusters, file)


def general_figures(general: GeneralText, tuned: LossReport, base: LossReport | None) -> dict[str, Any]:
    """What general text came to: loss before and after, in nats per supervised token, and on what."""
    return {
        "loss": tuned.loss,
        **({} if base is None else {"base_loss": base.loss}),
        "num_examples": tuned.num_examples,
        "num_supervised_tokens": tuned.num_supervised_tokens,
        "digest": general.digest,
        "source": general.source,
    }


def _answers(context: RunContext, model: nn.Module, prompts: list[SamplePrompt]) -> list[str]:
    settings = GenerationSettings(
        max_new_tokens=context.config.evaluate.sample_max_new_tokens,
        seed=context.config.seed,
        precision=context.precision,
        device=context.device,
    )
    with torch.inference_mode():
        return generate_texts(model, context.tokenizer, [prompt.prompt_ids for prompt in prompts], settings)
