"""`train`: tokens to weights."""

from pathlib import Path

from llmtune import distributed
from llmtune.config.method import AdapterConfig
from llmtune.data.plan import StepPlan
from llmtune.errors import ConfigError, RunError
from llmtune.evaluation.perplexity import LossSettings, evaluate_loss
from llmtune.logs import progress, say
from llmtune.models.digest import describe_weights
from llmtune.runs.metrics_log import MetricsLog
from llmtune.stages.adaptation import check_tokens_of_adapter
from llmtune.stages.context import RunContext
from llmtune.stages.division import plan_settings, record_other_division
from llmtune.stages.training_choices import (
    Choices,
    capture,
    fit,
    make_choices,
    record_choices,
    restored_splits,
    settle_changes,
)
from llmtune.stages.training_record import record_training, say_numbers
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.callbacks.idle import IdleCallback
from llmtune.training.callbacks.metrics import MetricsCallback
from llmtune.training.callbacks.progress import ProgressCallback
from llmtune.training.callbacks.validation import ValidationCallback, ValidationSettings
from llmtune.training.checkpoint import checkpoint_step, load_checkpoint, newest_intact_checkpoint, settle_best
from llmtune.training.collectives import value_of_first
from llmtune.training.loop import train
from llmtune.training.memory import optimizer_bytes
from llmtune.training.optimizer import make_optimizer
from llmtune.training.parts import Callback, LoopSettings, TrainParts, TrainState
from llmtune.training.scaler import make_scaler
from llmtune.training.schedule import ScheduleSettings, warmup_steps_or_default
from llmtune.training.throughput import reset_peak_memory


def run(context: RunContext) -> None:
    """Train from the start, or from the newest checkpoint where there is one."""
    config, method = context.config, context.method
    _check_master_dtype(context)
    base = method.load(context.source, context.how)
    model = method.make_trainable(base, config.seed, context.source.vocabulary.new_ids)
    choices = make_choices(context, model)
    packed = choices.attention.packed
    plan = _plan(context, packed=packed)
    parts = TrainParts(
        model=model,
        method=method,
        optimizer=make_optimizer(model, config.train.optimizer, config.train.learning_rate, config.train.weight_decay),
        plan=plan,
        table=context.data.train,
        precision=context.precision,
        device=context.device,
        settings=_settings(context, plan, packed=packed),
        scaler=make_scaler(context.device) if context.precision.needs_loss_scaling else None,
        splits=restored_splits(context),
    )
    state = _resumed(context, parts)
    _check_steps_left(state.global_step, parts.settings.schedule.total_steps)
    settle_changes(context, state.global_step)
    fit(context, parts, choices)
    capture(context, parts, choices)
    record_choices(context, parts, choices)
    record_other_division(context, plan.settings, state.global_step)
    say_numbers(context, parts, choices)
    metrics = MetricsCallback(MetricsLog(context.folder.metrics_file), context.tracker, config.train.log_every_steps)
    reset_peak_memory(context.device)
    with progress("train", parts.settings.schedule.total_steps) as line, _saving(context, parts) as saving:
        train(parts, state, [ProgressCallback(line), metrics, *_validating(context, choices), saving, IdleCallback()])
    if distributed.is_first():
        record_training(context, parts, state, metrics.throughput)


def _plan(context: RunContext, *, packed: bool) -> StepPlan:
    table = context.data.train
    return StepPlan(table.num_tokens, table.num_supervised_tokens, plan_settings(context, packed=packed))


def _settings(context: RunContext, plan: StepPlan, *, packed: bool) -> LoopSettings:
    train_config = context.config.train
    total = plan.count_steps(train_config.num_epochs, train_config.max_steps)
    schedule = ScheduleSettings(
        name=train_config.schedule,
        peak=train_config.learning_rate,
        warmup_steps=warmup_steps_or_default(train_config.warmup_steps, total),
        total_steps=total,
        num_cycles=train_config.num_cycles,
    )
    return LoopSettings(context.config.seed, schedule, train_config.max_grad_norm, packed, context.pad_token_id)


def _check_master_dtype(context: RunContext) -> None:
    """Check that weights which train in bf16 meet bf16 products, as `train.precision=auto` may be another here.

    Raises:
        ConfigError: they don't.
    """
    precision, master_dtype = context.precision, context.config.train.master_dtype
    if master_dtype == "bf16" and precision.name != "bf16":
        raise ConfigError(
            f"train.master_dtype=bf16: needs bf16 products too, and train.precision={context.config.train.precision} "
            f"is {precision.name} here ({precision.reason}); train on a device that computes bf16 natively, or set "
            "train.master_dtype=fp32."
        )


def _resumed(context: RunContext, parts: TrainParts) -> TrainState:
    """The newest whole checkpoint's state, put into `parts`; where there is none a fresh one, on `method.adapter`."""
    newest = newest_intact_checkpoint(context.folder.checkpoints) if distributed.is_first() else None
    step = int(value_of_first(-1 if newest is None else checkpoint_step(newest), parts.device))
    if step < 0:
        _start_from_adapter(context, parts)
        return TrainState()
    checkpoint = context.folder.checkpoint(step)
    say(f"going on from {checkpoint}")
    state = load_checkpoint(checkpoint, parts)
    settle_best(state, context.folder.checkpoints)
    return state


def _check_steps_left(num_steps: int, total_steps: int) -> None:
    """Check that a run which goes on isn't asked for fewer steps than it has done.

    Raises:
        RunError: it is.
    """
    if num_steps > total_steps:
        raise RunError(
            f"the run would have {total_steps} steps, and {num_steps} are done; allow it as many or more with "
            "train.max_steps=N resume_allow=[train.max_steps], or start a new run"
        )


def _start_from_adapter(context: RunContext, parts: TrainParts) -> None:
    """Put the adapter that `method.adapter` names into the model, where it names one."""
    method = context.config.method
    if not isinstance(method, AdapterConfig) or method.adapter is None:
        return
    adapter = Path(method.adapter)
    context.check_base_of(adapter)
    check_tokens_of_adapter(adapter, context.source)
    parts.method.restore(parts.model, adapter)
    say(f"going on from the adapter {adapter}")
    if distributed.is_first():
        context.manifest.record("adapter", describe_weights(adapter))


def _validating(context: RunContext, choices: Choices) -> list[Callback]:
    """Validation during training, where there is a validation split."""
    table, train_config = context.data.validation, context.config.train
    if not len(table):
        return []
    settings = LossSettings(
        batch_tokens=context.config.evaluate.batch_tokens,
        packed=choices.attention.packed,
        pad_token_id=context.pad_token_id,
        precision=context.precision,
        device=context.device,
        description="validate",
    )
    when = ValidationSettings(train_config.validate_every_steps, train_config.early_stopping_patience)
    log = MetricsLog(context.folder.metrics_file)
    return [ValidationCallback(lambda model: evaluate_loss(model, table, settings).loss, when, log, context.tracker)]


def _saving(context: RunContext, parts: TrainParts) -> CheckpointCallback:
    train_config = context.config.train
    when = CheckpointSettings(
        every_steps=train_config.checkpoint_every_steps,
        validate_every_steps=train_config.validate_every_steps,
        keep=train_config.keep_checkpoints,
        optimizer_bytes=optimizer_bytes(train_config.optimizer, parts.trainable[0].dtype),
    )
    return CheckpointCallback(context.folder, when)
