"""What `run=` means for the stages: in which run folder the work goes on, and what may have changed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.config.paths import with_absolute_paths
from llmtune.config.resume_allow import find_other_batch, find_wrong_names, never_because
from llmtune.config.run import RunConfig
from llmtune.config.saved import save_config
from llmtune.config.validate import flatten, to_plain, to_run_config
from llmtune.errors import ConfigError, RunError
from llmtune.launch import count_processes
from llmtune.references import NamedRun
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import start_run_folder
from llmtune.runs.manifest import Manifest
from llmtune.runs.status import check_not_running

_HARMLESS = (
    "cache_dir",
    "compare.",
    "data.num_workers",
    "data.write_clean",
    "evaluate.",
    "export.",
    "generate.",
    "hardware.",
    "runs_dir",
    "sweep.",
    "tracking.",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.log_every_steps",
    "train.select_checkpoint",
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
)
"""Keys that may change after training, in a run of its own; the others say how the weights came about."""

_MADE_ANEW = ("train", "evaluate", "export")
"""Stages whose results are another's once training goes on with another config."""
NEEDS_TRAINING = "resume_allow: belongs to train run=RUN, where training goes on; leave it out."


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
    config = dataclasses.replace(config, resume_allow=())
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
    allowed = {key: values for key, values in changed.items() if trains and not key.startswith(_HARMLESS)}
    if allowed:
        Manifest(source.manifest_file).allow_changes(allowed, _MADE_ANEW)
        source.final_checkpoint.unlink(missing_ok=True)
        save_config(config, source.config_file)
        return source
    if source.final_checkpoint.exists():
        return start_run_folder(dataclasses.replace(config, source_run=str(source.path)))
    if not all(key.startswith(_HARMLESS) for key in changed):
        raise RunError(f"{source.path} has no finished training; go on with: train run={source.path}")
    if "data.write_clean" in changed:
        Manifest(source.manifest_file).allow_changes({}, ("prepare",))  # which writes that file
    save_config(config, source.config_file)
    return source


def check_changes(config: RunConfig, earlier: NamedRun, *, trains: bool) -> None:
    """Check that what was typed on top of a run's config agrees with the weights that it trained, or trains.

    Raises:
        ConfigError: with every key that doesn't.
        RunError: training is asked of a run that takes the weights of another.
    """
    if trains and config.is_trained_elsewhere:
        source = config.source_run or config.source_weights or config.model.name
        raise RunError(f"{earlier.folder.path} trains nothing: it takes the weights of {source}; name that one")
    if config.resume_allow and not trains:
        raise ConfigError(NEEDS_TRAINING)
    harmless = _HARMLESS if trains else (*_HARMLESS, *_OF_LATER_STAGES)
    changes = _changed(dataclasses.replace(config, resume_allow=()), earlier).items()
    problems = list(find_wrong_names(config.resume_allow))
    problems += [
        _refusal(key, before, after, trains=trains)
        for key, (before, after) in changes
        if not key.startswith(harmless) and key not in config.resume_allow
    ]
    if trains:
        problems += _other_threads(config, earlier)
    if not problems and trains:
        problems += find_other_batch(to_run_config(earlier.config), config)
    if problems:
        raise ConfigError(problems)


def _changed(config: RunConfig, earlier: NamedRun) -> dict[str, tuple[Any, Any]]:
    """The keys that differ from the earlier run's, each with its value before and after."""
    before, after = (flatten(to_plain(one)) for one in (to_run_config(earlier.config), with_absolute_paths(config)))
    return {key: (before.get(key), value) for key, value in after.items() if before.get(key) != value}


def _other_threads(config: RunConfig, earlier: NamedRun) -> list[str]:
    """A sentence where other CPU threads were typed than the run, in as many processes, began with."""
    typed, choices = config.hardware.num_threads, Manifest(earlier.folder.manifest_file).section("choices")
    if typed in (None, earlier.config.get("hardware", {}).get("num_threads"), choices.get("num_threads", typed)):
        return []
    if choices.get("num_processes") != count_processes(config.hardware):
        return []
    return [
        f"hardware.num_threads={typed}: the run began with {choices['num_threads']} CPU threads a process, and its "
        "sums depend on them; leave it out, or start a new run without run=."
    ]


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


def _refusal(key: str, before: Any, after: Any, *, trains: bool) -> str:
    cure = "leave it as it was, or start a new run without run="
    if trains and never_because(key) is None:
        cure = f"leave it as it was, allow it with resume_allow=[{key}], or start a new run without run="
    return f"{key}={after}: the run began with {before}; {cure}."
