"""What `run=` means for the stages: in which run folder the work goes on, and what may have changed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.config.paths import with_absolute_paths
from llmtune.config.run import RunConfig
from llmtune.config.saved import save_config
from llmtune.config.validate import flatten, to_plain
from llmtune.errors import ConfigError, RunError
from llmtune.references import NamedRun
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import start_run_folder
from llmtune.runs.status import check_not_running

_HARMLESS = (
    "cache_dir",
    "evaluate.",
    "export.",
    "generate.",
    "runs_dir",
    "sweep.",
    "tracking.",
    "train.keep_checkpoints",
    "train.log_every_steps",
)
"""Keys that don't change what is trained: training may go on with others than it began with."""
_OF_LATER_STAGES = (
    "data.",
    "hardware.",
    "model.attention",
    "seed",
    "train.deterministic",
    "train.packing",
    "train.precision",
    "train.select_checkpoint",
)
"""Keys that may change after training, in a run of its own; the others say how the weights came about."""


def folder_to_go_on_in(config: RunConfig, earlier: NamedRun, stages: Sequence[str]) -> RunFolder:
    """The earlier run's folder; a new one where it is trained and later stages run on changed inputs or a checkpoint.

    Args:
        config: the earlier run's config with what was typed on top.
        earlier: the run that was named.
        stages: the stages asked for.

    Raises:
        ConfigError: what was typed contradicts how the run was trained, or is to be.
        RunError: another process is at work on the run, or there is nothing to train or to go on from.
    """
    config, trains = with_absolute_paths(config), "prepare" in stages or "train" in stages
    check_changes(config, earlier, trains=trains)
    if earlier.checkpoint is not None and not trains:
        source = config.source_run or str(earlier.folder.path)
        return start_run_folder(dataclasses.replace(config, source_run=source, source_weights=str(earlier.checkpoint)))
    if earlier.checkpoint is not None:
        _check_newest(earlier.checkpoint)
    check_not_running(earlier.folder)
    changed = _changed(config, earlier)
    if not changed:
        return earlier.folder
    if config.is_trained_elsewhere:
        return start_run_folder(config)
    source = earlier.folder
    if source.final_checkpoint.exists():
        return start_run_folder(dataclasses.replace(config, source_run=str(source.path)))
    if not all(key.startswith(_HARMLESS) for key in changed):
        raise RunError(f"{source.path} has no finished training; go on with: train run={source.path}")
    save_config(config, earlier.folder.config_file)
    return earlier.folder


def check_changes(config: RunConfig, earlier: NamedRun, *, trains: bool) -> None:
    """Check that what was typed on top of a run's config agrees with the weights that it trained, or trains.

    Raises:
        ConfigError: with every key that doesn't.
        RunError: training is asked of a run that takes the weights of another.
    """
    if trains and config.is_trained_elsewhere:
        source = config.source_run or config.source_weights or config.model.name
        raise RunError(f"{earlier.folder.path} trains nothing: it takes the weights of {source}; name that one")
    allowed = _HARMLESS if trains else (*_HARMLESS, *_OF_LATER_STAGES)
    changes = _changed(config, earlier).items()
    refused = [_refusal(key, before, after) for key, (before, after) in changes if not key.startswith(allowed)]
    if refused:
        raise ConfigError(refused)


def _changed(config: RunConfig, earlier: NamedRun) -> dict[str, tuple[Any, Any]]:
    """The keys that differ from the earlier run's, each with its value before and after."""
    before, after = flatten(earlier.config), flatten(to_plain(with_absolute_paths(config)))
    return {key: (before.get(key), value) for key, value in after.items() if before.get(key) != value}


def _check_newest(checkpoint: Path) -> None:
    """Refuse to train on from a checkpoint that training has left behind."""
    number = _number(checkpoint)
    newest = max((_number(other) for other in checkpoint.parent.glob("checkpoint-*")), default=number)
    if number < newest:
        raise RunError(
            f"run={checkpoint}: training went on to checkpoint-{newest}, and a run goes on from its newest; name the "
            f"run, {checkpoint.parent.parent}, or start a new one from this adapter with method.adapter={checkpoint}"
        )


def _number(checkpoint: Path) -> int:
    name = checkpoint.name.rpartition("-")[2]
    return int(name) if name.isdigit() else 0


def _refusal(key: str, before: Any, after: Any) -> str:
    return f"{key}={after}: the run began with {before}; leave it as it was, or start a new run without run=."
