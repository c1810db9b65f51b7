"""What is decided at run time: before the first step it is recorded, and restored where the run goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from llmtune import distributed
from llmtune.config.resume_allow import SCHEDULE_KEYS
from llmtune.config.validate import flatten, to_plain
from llmtune.errors import RunError
from llmtune.logs import say, warn
from llmtune.methods.method import trainable_parameters
from llmtune.models.attention import VARLEN_KERNEL, set_attention, varlen_attn
from llmtune.models.decoding import (
    FAST,
    OWN,
    DecoderChoice,
    Recomputed,
    choose_decoder,
    decoder_fault,
    recompute_activations,
)
from llmtune.models.fast.decoder import decoder_of, use_decoder
from llmtune.models.packing import AttentionChoice, choose_attention, packing_fault
from llmtune.models.token_loss import WHOLE, LossChoice, choose_loss, set_loss
from llmtune.runs.environment import jobs_at_once
from llmtune.stages.context import RunContext
from llmtune.stages.division import division
from llmtune.training.captured import NOT_TRIED, CaptureChoice, choose_capture, release_capture
from llmtune.training.collectives import most_over_ranks
from llmtune.training.fitting import fit_memory
from llmtune.training.memory import optimizer_bytes
from llmtune.training.parts import TrainParts
from llmtune.training.splits import Split, Splits

_FIXED_CHOICES = ("packed", "total_steps", "warmup_steps", "deterministic")
"""Choices that follow from config and data, and must be the same again."""
_SCHEDULE_CHOICES = ("total_steps", "warmup_steps")
"""Those of them that another number of epochs or steps changes."""
_CURE = "go on where it can be the same, or start a new run"
_OLD_LOSS = "cross-entropy in fp32 over the supervised positions' logits"
"""What was recorded while there was one way to compute losses."""
_AS_BEGUN = "as the run began"
_TOO_LARGE = "a single example a pass doesn't fit in memory otherwise"
_PAGED = "paged_"


@dataclass(frozen=True)
class Recomputation:
    """Activations that are computed again in the backward pass."""

    what: Recomputed
    reason: str
    """Why, in words."""


@dataclass
class Choices:
    """How a run computes, as far as its config leaves it open."""

    loss: LossChoice
    attention: AttentionChoice
    decoder: DecoderChoice
    recomputing: Recomputation | None
    """None where all that the backward pass needs is kept."""
    capture: CaptureChoice = NOT_TRIED
    """Whether a pass is captured; tried once memory is fitted."""


def make_choices(context: RunContext, model: nn.Module) -> Choices:
    """Switch the model to what the run began with; a new run to what is fastest and right for its numbers.

    Args:
        context: the run's.
        model: as it will train.

    Raises:
        RunError: this machine can't compute as the run began.
    """
    begun = context.manifest.section("choices")
    recomputing = _recomputing(context)
    if not begun:
        with context.precision.autocast():
            loss = choose_loss(model)
        attention = choose_attention(model, context.packing_needs, context.precision)
        attention = _packed_everywhere(attention, context.device)
        choices = Choices(loss, attention, _new_decoder(context, model, attention), recomputing)
    else:
        _tell_other_device(begun, context.device)
        loss, attention = _restored_loss(begun, model), _restored_attention(context, begun, model)
        choices = Choices(loss, attention, _restored_decoder(context, begun, model), recomputing)
    if choices.recomputing:
        recompute_activations(model, choices.recomputing.what)
    return choices


def restored_splits(context: RunContext) -> Splits:
    """How the run has cut its micro-batches so far; each new split is recorded before it is used."""
    known = context.manifest.section("choices").get("micro_batch_split", ())

    def keep(splits: Sequence[Split]) -> None:
        context.manifest.record("choices", {"micro_batch_split": [asdict(split) for split in splits]})

    return Splits([Split(**entry) for entry in known] or [Split(1, 1)], keep)


def fit(context: RunContext, parts: TrainParts, choices: Choices) -> None:
    """On a GPU, cut a new run's micro-batches and recompute activations as far as its memory makes it necessary.

    Raises:
        ExampleTooLarge: a single example doesn't fit either way.
    """
    if parts.device.type != "cuda" or context.manifest.section("choices"):
        return
    before = choices.recomputing.what if choices.recomputing else None
    needed = fit_memory(parts, _optimizer_bytes(context, parts), before)
    if needed is not None and needed != before:
        choices.recomputing = Recomputation(needed, _TOO_LARGE)


def capture(context: RunContext, parts: TrainParts, choices: Choices) -> None:
    """Capture the pass that every micro-batch makes, where it can be and is worth its while."""
    begun = context.manifest.section("choices").get("compile")
    choice = choose_capture(parts, context.config.train.compile, begun=begun)
    launched_somewhere = most_over_ranks(not choice.captured, parts.device)
    if choice.captured and launched_somewhere:
        release_capture(parts)
        choice = CaptureChoice(False, "another process can't")
    decoder = decoder_of(parts.model)
    if begun and not choice.captured and decoder is not None and decoder.drops:
        warn(
            f"compile: the run began with a captured pass, and here there is none ({choice.reason}): the same steps of "
            "the same examples, but dropout drops others, so its numbers are no longer bit for bit the same"
        )
    choices.capture = choice


def record_choices(context: RunContext, parts: TrainParts, choices: Choices) -> None:
    """Write what was decided to the manifest, before the first step; a run that goes on must agree and adds nothing.

    Raises:
        RunError: the run began with other choices that its numbers depend on.
    """
    made = {
        "device": str(parts.device),
        "device_name": device_name(parts.device),
        "precision": parts.precision.name,
        "attention": choices.attention.name,
        "packed": choices.attention.packed,
        "loss": choices.loss.name,
        "decoder": choices.decoder.name,
        "compile": choices.capture.captured,
        "activation_checkpointing": choices.recomputing is not None,
        "activation_checkpointing_reason": choices.recomputing and choices.recomputing.reason,
        "recomputed": choices.recomputing and choices.recomputing.what,
        "micro_batch_split": [asdict(split) for split in parts.splits.all],
        **division(parts.plan.settings),
        "num_threads": torch.get_num_threads(),
        "warmup_steps": parts.settings.schedule.warmup_steps,
        "total_steps": parts.settings.schedule.total_steps,
        "deterministic": context.config.train.deterministic,
    }
    begun = context.manifest.section("choices")
    free = _SCHEDULE_CHOICES if SCHEDULE_KEYS & set(context.manifest.changes) else ()
    changed = [name for name in _FIXED_CHOICES if begun and begun.get(name) != made[name] and name not in free]
    if changed:
        found = ", ".join(f"{name} {begun.get(name)} (here {made[name]})" for name in changed)
        raise RunError(f"the run began with {found}; {_CURE}")
    if not begun or free:
        # In every process, as the later stages ask it.
        context.manifest.record("choices", {name: made[name] for name in free or made}, write=distributed.is_first())
    _record_company(context, begun)


def _record_company(context: RunContext, begun: Mapping[str, Any]) -> None:
    """Note with how many jobs the run shares what it computes on, now or before: its times are then not its own."""
    sharing = jobs_at_once()
    if sharing > begun.get("jobs_at_once", 1):
        context.manifest.record("choices", {"jobs_at_once": sharing}, write=distributed.is_first())


def settle_changes(context: RunContext, step: int) -> None:
    """Record from which step on the run has another config, where `resume_allow` let it change.

    Args:
        context: the run's.
        step: steps done before.
    """
    context.manifest.settle_changes(step, flatten(to_plain(context.config)), write=distributed.is_first())
    changes = context.manifest.changes
    if not changes:
        return
    described = [
        f"{key}: {entry['before']} -> {entry['after']} after step {entry['step']}"
        for key, entries in changes.items()
        for entry in entries
    ]
    say(f"the config has changed within this run ({'; '.join(described)})")
    context.tracker.set_tags({"changed_on_resume": "; ".join(described)})


def attention_for_evaluation(context: RunContext, model: nn.Module) -> AttentionChoice:
    """Switch a model to the attention and loss that the run trained with; to what is right here where it can't be.

    Args:
        context: the run's.
        model: the base model or the trained one.
    """
    begun, attention = context.begun_choices, None
    if begun:
        fault = None
        try:
            _restored_loss(begun, model)
            attention = _restored_attention(context, begun, model)
            _restored_decoder(context, begun, model)
        except RunError as error:
            fault = error.args[0].partition(";")[0]
        failed_somewhere = most_over_ranks(fault is not None, context.device)
        if attention and not failed_somewhere:
            return _packed_everywhere(attention, context.device)
        warn(f"evaluate: {fault or 'another process differs'}; what is right here is taken instead")
    attention = attention or choose_attention(model, context.packing_needs, context.precision)
    attention = _packed_everywhere(attention, context.device)
    _new_decoder(context, model, attention)
    return attention


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _recomputing(context: RunContext) -> Recomputation | None:
    """What is computed again: as the run began, or as typed."""
    begun = context.manifest.section("choices")
    if begun.get("activation_checkpointing"):
        reason = begun.get("activation_checkpointing_reason", _AS_BEGUN)
        return Recomputation(begun.get("recomputed") or "blocks", reason)
    if context.config.train.activation_checkpointing:
        return Recomputation("blocks", "asked for by train.activation_checkpointing")
    return None


def _tell_other_device(begun: Mapping[str, Any], device: torch.device) -> None:
    kind = begun["device"].partition(":")[0]
    if kind != device.type:
        warn(
            f"device: the run began on {kind} and goes on on {device.type}: the same steps of the same examples, but "
            "its numbers are no longer bit for bit those of one device"
        )


def _restored_loss(begun: Mapping[str, Any], model: nn.Module) -> LossChoice:
    name = WHOLE if begun["loss"] == _OLD_LOSS else begun["loss"]
    try:
        set_loss(model, name)
    except ValueError as error:
        raise RunError(f"loss: the run began with {name!r}, and here {error}; {_CURE}") from error
    return LossChoice(name, _AS_BEGUN)


def _new_decoder(context: RunContext, model: nn.Module, attention: AttentionChoice) -> DecoderChoice:
    """The decoder of a model whose attention and loss are chosen: llmtune's only where every process can have it."""
    choice = choose_decoder(model, context.config.model.decoder, context.precision, packed=attention.packed)
    own_somewhere = most_over_ranks(choice.name == OWN, context.device)
    if choice.name == FAST and own_somewhere:
        use_decoder(model, None)
        return DecoderChoice(OWN, "llmtune's gives other numbers in another process")
    return choice


def _restored_decoder(context: RunContext, begun: Mapping[str, Any], model: nn.Module) -> DecoderChoice:
    name = begun.get("decoder", OWN)
    if name == OWN:
        use_decoder(model, None)
        return DecoderChoice(OWN, _AS_BEGUN)
    fault = decoder_fault(model, context.precision)
    if fault is not None:
        raise RunError(f"decoder: the run began with llmtune's own, and here {fault}; {_CURE}")
    return DecoderChoice(FAST, _AS_BEGUN)


def _packed_everywhere(choice: AttentionChoice, device: torch.device) -> AttentionChoice:
    """The choice with packed rows only where every process may pack them, as all share out the same rows."""
    padded_somewhere = most_over_ranks(not choice.packed, device)
    if choice.packed and padded_somewhere:
        return replace(choice, packed=False, reason="packing isn't exact in another process: padded rows")
    return choice


def _restored_attention(context: RunContext, begun: Mapping[str, Any], model: nn.Module) -> AttentionChoice:
    name, packed = begun["attention"], begun["packed"]
    fault = _attention_fault(context, model, name, packed=packed)
    if fault is not None:
        rows = "packed" if packed else "padded"
        raise RunError(f"attention: the run began with {name!r} on {rows} rows, and here {fault}; {_CURE}")
    return AttentionChoice(name, packed, _AS_BEGUN)


def _attention_fault(context: RunContext, model: nn.Module, name: str, *, packed: bool) -> str | None:
    """Why a model can't take an attention implementation here; None where it has taken it."""
    if name == VARLEN_KERNEL and (context.device.type != "cuda" or varlen_attn is None):
        return f"{context.device.type} has no such kernel" if varlen_attn else "this torch has no such kernel"
    if packed:
        fault = packing_fault(model, name, context.precision)
        return fault and f"it doesn't give the right numbers: {fault}"
    try:
        set_attention(model, name)
    except (ValueError, ImportError) as error:
        return str(error).splitlines()[0]
    return None


def _optimizer_bytes(context: RunContext, parts: TrainParts) -> float:
    """Of the optimizer's state, which its first update allocates; one that is paged leaves the GPU where need be."""
    name = context.config.train.optimizer
    if name.startswith(_PAGED):
        return 0.0
    return trainable_parameters(parts.model).trainable * optimizer_bytes(name, parts.trainable[0].dtype)
