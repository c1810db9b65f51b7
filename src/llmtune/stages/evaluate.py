"""`evaluate`: weights to metrics on the test set, for the base model and the tuned one."""

from typing import Any

import torch
from rich.text import Text
from torch import nn

from llmtune import distributed
from llmtune.evaluation.generation import GenerationSettings, generate_texts
from llmtune.evaluation.perplexity import LossReport, LossSettings, evaluate_loss, write_predictions
from llmtune.evaluation.samples import SamplePrompt, sample_prompts
from llmtune.logs import say, show
from llmtune.models.attention import attention_of
from llmtune.models.load import load_frozen
from llmtune.models.token_loss import choose_loss
from llmtune.runs.manifest import write_json
from llmtune.stages.context import RESULT_STEP, RunContext
from llmtune.stages.training_choices import attention_for_evaluation
from llmtune.stages.training_record import log_plots
from llmtune.tracking.plots import TestLosses
from llmtune.training.collectives import wait_for_all

_TRACKED = ("loss", "perplexity", "bits_per_byte", "tokens_per_second", "base_loss", "base_perplexity")
"""What is a metric; the manifest has all figures."""
_SHOWN_CHARACTERS = 400


def run(context: RunContext) -> None:
    """Measure both models on the test split, which nothing before has read, and let both write samples."""
    prompts = sample_prompts(context.data.test, context.config.evaluate.num_samples)
    results: dict[str, Any] = {"checkpoint": context.checkpoint.name, "data_digest": context.data.digest}
    answers: dict[str, list[str]] = {}
    untrained = context.config.method.name == "none"
    if context.config.evaluate.base and not untrained:
        base = load_frozen(context.source, context.how)
        report, answers["base"] = _measure(context, base, "base", prompts)
        results |= {f"base_{name}": value for name, value in _figures(report).items()}
        del base
    name = "base" if untrained else "tuned"
    tuned = context.method.load_trained(context.source, context.checkpoint, context.how)
    report, answers[name] = _measure(context, tuned, name, prompts)
    results |= _figures(report)
    results["computed_with"] = {
        "precision": context.precision.name,
        "attention": attention_of(tuned),
        "loss": choose_loss(tuned).name,
    }
    if not distributed.is_first():
        return
    if context.config.tracking.log_text:
        _write_samples(context, prompts, answers)
    figures = {f"evaluate/{name}": results[name] for name in _TRACKED if name in results}
    context.tracker.log_metrics(figures, RESULT_STEP)
    log_plots(context, TestLosses(results["loss"], results.get("base_loss")))
    context.tracker.log_artifact(context.folder.path / "predictions", "predictions")
    context.manifest.finish_stage("evaluate", results)


def _measure(
    context: RunContext, model: nn.Module, name: str, prompts: list[SamplePrompt]
) -> tuple[LossReport, list[str]]:
    """A model's loss on the test split, kept example by example, and its answers to the prompts."""
    attention = attention_for_evaluation(context, model)
    settings = LossSettings(
        batch_tokens=context.config.evaluate.batch_tokens,
        packed=attention.packed,
        pad_token_id=context.pad_token_id,
        precision=context.precision,
        device=context.device,
        description=f"evaluate ({name})",
    )
    table = context.data.test
    report = evaluate_loss(model, table, settings)
    say(f"{name}: loss {report.loss:.4f}, perplexity {report.perplexity:.2f} ({attention_of(model)})")
    answers: list[str] = []
    if distributed.is_first():
        write_predictions(report, table, context.folder.predictions_file(name))
        answers = _answers(context, model, prompts)
    wait_for_all()
    return report, answers


def _answers(context: RunContext, model: nn.Module, prompts: list[SamplePrompt]) -> list[str]:
    settings = GenerationSettings(
        max_new_tokens=context.config.evaluate.sample_max_new_tokens,
        seed=context.config.seed,
        precision=context.precision,
        device=context.device,
    )
    with torch.inference_mode():
        return generate_texts(model, context.tokenizer, [prompt.prompt_ids for prompt in prompts], settings)


def _figures(report: LossReport) -> dict[str, float]:
    return {
        "loss": report.loss,
        "perplexity": report.perplexity,
        "bits_per_byte": report.bits_per_byte,
        "tokens_per_second": report.tokens_per_second,
        "seconds": report.seconds,
        "num_examples": report.num_examples,
        "num_supervised_tokens": report.num_supervised_tokens,
    }


def _write_samples(context: RunContext, prompts: list[SamplePrompt], answers: dict[str, list[str]]) -> None:
    decode = context.tokenizer.decode
    samples = [
        {
            "example_id": prompt.example_id,
            "prompt": decode(prompt.prompt_ids),
            "reference": decode(prompt.reference_ids, skip_special_tokens=True),
            **{name: texts[number] for name, texts in answers.items()},
        }
        for number, prompt in enumerate(prompts)
    ]
    write_json(context.folder.samples_file, samples)
    context.tracker.log_artifact(context.folder.samples_file)
    if samples:
        _show(samples[0])
        say(f"all {len(samples)} samples: {context.folder.samples_file}")


def _show(sample: dict[str, str]) -> None:
    """One test prompt and what follows it: as it really is, and as each model writes."""
    text = Text(f"sample {sample['example_id']}\n")
    text.append(sample["prompt"][-_SHOWN_CHARACTERS:], style="dim")
    for name in ("reference", "base", "tuned"):
        if name in sample:
            text.append(f"\n[{name}]", style="bold")
            text.append(sample[name][:_SHOWN_CHARACTERS].rstrip())
    show(text)
