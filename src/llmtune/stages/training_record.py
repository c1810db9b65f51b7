"""What training says and records about itself: derived numbers before it, results after it."""

import json
from typing import Any

import torch

from llmtune.logs import print_table, say, warn
from llmtune.methods.method import trainable_parameters
from llmtune.models.adapter_files import is_adapter
from llmtune.models.attention import underlying_model
from llmtune.runs.metrics_log import MetricsLog
from llmtune.stages.context import RESULT_STEP, RunContext
from llmtune.stages.division import step_in_words
from llmtune.stages.memory_advice import cheap_cures, known_of
from llmtune.stages.training_choices import Choices, device_name
from llmtune.tracking.plots import TestLosses, learning_rate_plot, loss_plot
from llmtune.training.advice import AskedFor, advice, few_updates, rounded_updates, unusual_rate
from llmtune.training.memory import (
    MemoryShape,
    adapter_inputs,
    device_memory_gib,
    estimate_memory,
    mask_bytes,
    optimizer_bytes,
)
from llmtune.training.parts import TrainParts, TrainState
from llmtune.training.throughput import Throughput, peak_memory_gib

_FROZEN_BYTES_4BIT = 0.55
_COMFORTABLE = 0.8


def say_numbers(context: RunContext, parts: TrainParts, choices: Choices) -> None:
    """Show the numbers that follow from config, model and data; warn where memory looks short."""
    config, count = context.config.train, trainable_parameters(parts.model)
    schedule, data = parts.settings.schedule, context.data.report["splits"]["train"]
    an_epoch, filled = parts.plan.steps_per_epoch, parts.plan.settings.tokens_per_step is not None
    in_step = f"about {data['num_tokens'] / an_epoch:,.0f} tokens"
    in_step += f" of {data['num_examples'] / an_epoch:,.0f} examples" if filled else ""
    needed, available = _memory(context, parts, choices), device_memory_gib(parts.device)
    rows = [
        ("trainable parameters", f"{count.trainable:,} of {count.total:,} ({count.trainable / count.total:.2%})"),
        ("a step", f"{step_in_words(parts.plan.settings)}, {in_step}"),
        (
            "steps",
            f"{schedule.total_steps:,} ({'about ' if filled else ''}{an_epoch:,} an epoch), "
            f"{schedule.warmup_steps} of warm-up",
        ),
        ("learning rate", f"{schedule.peak:g}, {schedule.name}; optimizer {config.optimizer}"),
        ("device", f"{device_name(parts.device)}, {torch.get_num_threads()} threads"),
        ("precision", f"{parts.precision.name} ({parts.precision.reason})"),
        ("attention", f"{choices.attention.name} ({choices.attention.reason})"),
        ("loss", f"{choices.loss.name} ({choices.loss.reason})"),
        ("decoder", f"{choices.decoder.name} ({choices.decoder.reason})"),
        *([("compile", _captured(choices))] if parts.device.type == "cuda" else []),
        *_made_to_fit(parts, choices),
        ("memory", f"about {needed:.1f} GiB of tensors; the device has {available:.1f} GiB"),
    ]
    print_table(f"training: {context.config.method.name}", ("", "value"), rows)
    if schedule.warmup_steps >= schedule.total_steps:
        warn(
            f"train.warmup_steps={schedule.warmup_steps}: the run has {schedule.total_steps} steps, so the learning "
            "rate never reaches its peak; lower it, or raise train.num_epochs"
        )
    for sentence in [*rounded_updates(config), *few_updates(_asked_for(context, parts))]:
        warn(sentence)
    for sentence in unusual_rate(_asked_for(context, parts)):
        say(f"note: {sentence}")
    if needed > _COMFORTABLE * available:
        warn(f"training may need about {needed:.1f} GiB and the device has {available:.1f} GiB{_to_lower(context)}")


def record_training(context: RunContext, parts: TrainParts, state: TrainState, throughput: Throughput) -> None:
    """Record results, plots, the adapter and what the curves suggest."""
    log = MetricsLog(context.folder.metrics_file)
    losses, count = log.losses("train/loss"), trainable_parameters(parts.model)
    results: dict[str, Any] = {
        "steps": state.global_step,
        "num_tokens": state.num_tokens,
        "num_supervised_tokens": state.num_supervised_tokens,
        "final_loss": losses[-1][1] if losses else None,
        "best_validation_loss": state.best_validation_loss,
        "best_step": state.best_step,
        "num_trainable": count.trainable,
        "num_parameters": count.total,
        "seconds": state.seconds,
        "tokens_per_second_per_device": throughput.tokens_per_second_per_device,
        "peak_memory_gib": peak_memory_gib(parts.device),
        "checkpoint": context.checkpoint.name,
        "weights_sha256": _weights_digests(context),
        "advice": advice(losses, state.validation_losses, _asked_for(context, parts)),
    }
    figures = {name: results[name] for name in ("seconds", "peak_memory_gib", "num_trainable")}
    figures["mean_tokens_per_second_per_device"] = throughput.tokens_per_second_per_device
    context.tracker.log_metrics({f"train/{name}": value for name, value in figures.items() if value}, RESULT_STEP)
    log_plots(context)
    if context.config.tracking.log_model in ("auto", "adapter") and is_adapter(context.checkpoint):
        for file in sorted(context.checkpoint.glob("adapter_*")):
            context.tracker.log_artifact(file, "adapter")
    say(f"trained: {state.global_step} steps in {state.seconds:.0f} s; checkpoint: {context.checkpoint}")
    context.manifest.finish_stage("train", results)


def _asked_for(context: RunContext, parts: TrainParts) -> AskedFor:
    return AskedFor(
        train=context.config.train,
        method=context.config.method,
        total_steps=parts.settings.schedule.total_steps,
        steps_per_epoch=parts.plan.steps_per_epoch,
        max_seq_len=context.config.data.max_seq_len,
    )


def _to_lower(context: RunContext) -> str:
    """What is left to lower without another result, as the end of a sentence."""
    cures = cheap_cures("train", context.config, known_of(context, "train"))
    return f"; try {' or '.join(cure.typed for cure in cures)}" if cures else ", and nothing cheap is left to lower"


def log_plots(context: RunContext, test_losses: TestLosses | None = None) -> None:
    """Draw the curves of the run, and the test set's losses beside them, and log them."""
    metrics, folder = context.trained_run.metrics_file, context.folder.plots
    pictures = (
        loss_plot(metrics, folder / "loss.png", test_losses=test_losses),
        learning_rate_plot(metrics, folder / "learning_rate.png"),
    )
    for picture in pictures:
        if picture is not None:
            context.tracker.log_artifact(picture, "plots")


def _weights_digests(context: RunContext) -> dict[str, str]:
    index = json.loads((context.checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
    weights = {name: digest for name, digest in index["files"].items() if name.endswith(".safetensors")}
    return {name: digest for name, digest in weights.items() if not name.startswith("optimizer")}


def _memory(context: RunContext, parts: TrainParts, choices: Choices) -> float:
    count = trainable_parameters(parts.model)
    config = underlying_model(parts.model).config.get_text_config()
    frozen = next((p for p in parts.model.parameters() if not p.requires_grad), None)
    four_bit, master_dtype = context.config.method.name == "qlora", parts.trainable[0].dtype
    shape = MemoryShape(
        num_parameters=count.total,
        num_trainable=count.trainable,
        frozen_bytes=_FROZEN_BYTES_4BIT if four_bit else frozen.element_size() if frozen is not None else 4,
        optimizer_bytes=optimizer_bytes(context.config.train.optimizer, master_dtype),
        compute_bytes=parts.precision.compute_dtype.itemsize,
        mask_bytes=mask_bytes(parts.device, parts.precision.compute_dtype),
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        adapter_inputs=adapter_inputs(parts.model),
        master_bytes=master_dtype.itemsize,
    )
    limit = parts.plan.settings.micro_batch_tokens
    longest = context.data.report["splits"]["train"]["longest_tokens"]
    tokens = min(limit, longest * parts.plan.settings.micro_batch_size)
    if parts.settings.packed and parts.plan.settings.tokens_per_step is not None:
        tokens = min(limit, parts.plan.settings.tokens_per_step)
    tokens = max(longest, tokens // parts.splits.all[-1].pieces)
    whole_blocks = choices.recomputing is not None and choices.recomputing.what == "blocks"
    return estimate_memory(shape, tokens, activation_checkpointing=whole_blocks)


def _captured(choices: Choices) -> str:
    return f"{'captured as a CUDA graph' if choices.capture.captured else 'no graph'} ({choices.capture.reason})"


def _made_to_fit(parts: TrainParts, choices: Choices) -> list[tuple[str, str]]:
    """What was done about short memory."""
    rows, last = [], parts.splits.all[-1]
    if last.pieces > 1:
        rows.append(
            ("micro-batches", f"cut into {last.pieces} pieces from step {last.from_step} on, as memory is short")
        )
    if choices.recomputing:
        which = "all" if choices.recomputing.what == "blocks" else "the widest"
        rows.append(("activations", f"{which} computed again in the backward pass ({choices.recomputing.reason})"))
    return rows
