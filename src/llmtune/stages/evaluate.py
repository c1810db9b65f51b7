"""`evaluate`: weights to metrics on the test set, for the base model and the tuned one."""

from typing import Any

from rich.text import Text

from llmtune import distributed
from llmtune.evaluation.samples import SamplePrompt, sample_prompts
from llmtune.logs import say, show, warn
from llmtune.models.attention import attention_of
from llmtune.models.decoding import FAST, OWN
from llmtune.models.fast.decoder import decoder_of
from llmtune.models.load import load_frozen
from llmtune.models.token_loss import choose_loss
from llmtune.runs.manifest import write_json
from llmtune.stages.base_evaluation import shared_base
from llmtune.stages.context import RESULT_STEP, RunContext
from llmtune.stages.data_advice import num_found
from llmtune.stages.known_examples import count_test_seen
from llmtune.stages.measuring import Measured, general_figures, measure, write_measured
from llmtune.stages.training_record import log_plots
from llmtune.tracking.plots import TestLosses

_TRACKED = ("loss", "perplexity", "bits_per_byte", "tokens_per_second", "base_loss", "base_perplexity")
"""What is a metric; the manifest has all figures."""
_SHOWN_CHARACTERS = 400


def run(context: RunContext) -> None:
    """Measure both models on the test split, which nothing before has read, and let both write samples."""
    config = context.config
    untrained = config.method.name == "none"
    # Answers of which nothing may be kept aren't asked for.
    prompts = sample_prompts(context.data.test, config.evaluate.num_samples if config.tracking.log_text else 0)
    measured: dict[str, Measured | None] = {}
    if config.evaluate.base and not untrained:
        measured["base"] = shared_base(context, len(prompts), lambda: _measured_base(context, prompts))
    name = "base" if untrained else "tuned"
    tuned = context.method.load_trained(context.source, context.checkpoint, context.how)
    measured[name] = measure(context, tuned, name, prompts)
    computed_with = {
        "precision": context.precision.name,
        "attention": attention_of(tuned),
        "loss": choose_loss(tuned).name,
        "decoder": OWN if decoder_of(tuned) is None else FAST,
    }
    if not distributed.is_first():
        return
    known = {name: found for name, found in measured.items() if found is not None}
    write_measured(context, known)
    if config.tracking.log_text:
        _write_samples(context, prompts, {name: found.answers for name, found in known.items()})
    _record(context, known[name], known.get("base") if name != "base" else None, computed_with)


def _measured_base(context: RunContext, prompts: list[SamplePrompt]) -> Measured:
    return measure(context, load_frozen(context.source, context.how), "base", prompts)


def _record(context: RunContext, tuned: Measured, base: Measured | None, computed_with: dict[str, Any]) -> None:
    """Write the figures to the manifest and to the tracker."""
    results: dict[str, Any] = {"checkpoint": context.checkpoint.name, "data_digest": context.data.digest}
    if base is not None:
        results |= {f"base_{name}": value for name, value in base.figures().items()}
    results |= {**tuned.figures(), "computed_with": computed_with}
    figures = {f"evaluate/{name}": results[name] for name in _TRACKED if name in results}
    if context.general is not None and tuned.general is not None:
        general = general_figures(context.general, tuned.general, base and base.general)
        results["general"] = general
        names = {"loss": "evaluate/general_loss", "base_loss": "evaluate/general_base_loss"}
        figures |= {metric: general[name] for name, metric in names.items() if name in general}
    num_seen = count_test_seen(context)
    if num_seen is not None:
        results["num_test_seen"] = num_seen
    if num_seen and not num_found(context.data.report["overlap"]):  # else `prepare` has said it
        warn(f"{num_seen:,} test examples also stand in the data that the weights were trained or selected on")
    context.tracker.log_metrics(figures, RESULT_STEP)
    log_plots(context, TestLosses(results["loss"], results.get("base_loss")))
    context.tracker.log_artifact(context.folder.path / "predictions", "predictions")
    context.manifest.finish_stage("evaluate", results)


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
