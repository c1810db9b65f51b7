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


def folder_to_go_on_in(config: RunConfig, earlier: NamedRun, stages: Sequence[str]) -> RunFolder:
    """The earlier run's folder; a new one where it is trained and later stages run on changed inputs or a checkpoint.

    Args:
        config: the earlier run's config with what was typed on top.
        earlier: the run that was named.
        stages: the stages asked for.

    Raises:
        ConfigError: training would go on with another config than it began with.
        RunError: another process is at work on the run, or later stages are to change what isn't trained yet.
    """
    config, trains = with_absolute_paths(config), "prepare" in stages or "train" in stages
    if earlier.checkpoint is not None and not trains:
        source = config.source_run or str(earlier.folder.path)
        weights = str(earlier.checkpoint)
        return start_run_folder(dataclasses.replace(config, source_run=source, source_weights=weights))
    if earlier.checkpoint is not None:
        _check_newest(earlier.checkpoint)
    check_not_running(earlier.folder)
    before, after = flatten(earlier.config), flatten(to_plain(config))
    changed = [key for key in after if before.get(key) != after[key]]
    refused = [key for key in changed if not key.startswith(_HARMLESS)]
    if refused and trains:
        raise ConfigError([_refusal(key, before.get(key), after[key]) for key in refused])
    if not changed:
        return earlier.folder
    if config.is_trained_elsewhere:
        return start_run_folder(config)
    source = earlier.folder
    if source.final_checkpoint.exists():
        return start_run_folder(dataclasses.replace(config, source_run=str(source.path)))
    if refused:
        raise RunError(f"{source.path} has no finished training; go on with: train run={source.path}")
    save_config(config, earlier.folder.config_file)
    return earlier.folder


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
