"""What `run=` means for the stages: in which run folder the work goes on, and what may have changed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.config.paths import with_absolute_paths
from llmtune.config.run import RunConfig
from llmtune.config.saved import load_plain, save_config
from llmtune.config.validate import flatten, to_plain
from llmtune.errors import ConfigError, RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import find_run, start_run_folder
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


@dataclasses.dataclass(frozen=True)
class EarlierRun:
    """The run that `run=` names."""

    folder: RunFolder
    config: dict[str, Any]
    """Its saved config, plain."""


def earlier_run(reference: str, runs_dir: Path) -> EarlierRun:
    """Find the run.

    Raises:
        RunError: the reference leads nowhere, or the folder holds no config.
    """
    folder = find_run(reference, runs_dir)
    return EarlierRun(folder, load_plain(folder.config_file))


def folder_to_go_on_in(config: RunConfig, earlier: EarlierRun, stages: Sequence[str]) -> RunFolder:
    """The earlier run's folder; a new one where it is trained and later stages run on changed inputs.

    Args:
        config: the earlier run's config with what was typed on top.
        earlier: the run that was named.
        stages: the stages asked for.

    Raises:
        ConfigError: training would go on with another config than it began with.
        RunError: another process is at work on the run, or later stages are to change what isn't trained yet.
    """
    check_not_running(earlier.folder)
    config = with_absolute_paths(config)
    before, after = flatten(earlier.config), flatten(to_plain(config))
    changed = [key for key in after if before.get(key) != after[key]]
    refused = [key for key in changed if not key.startswith(_HARMLESS)]
    if refused and ("prepare" in stages or "train" in stages):
        raise ConfigError([_refusal(key, before.get(key), after[key]) for key in refused])
    if not changed:
        return earlier.folder
    source = RunFolder(Path(earlier.config.get("source_run") or earlier.folder.path))
    if source.final_checkpoint.exists():
        return start_run_folder(dataclasses.replace(config, source_run=str(source.path)))
    if refused:
        raise RunError(f"{source.path} has no finished training; go on with: train run={source.path}")
    save_config(config, earlier.folder.config_file)
    return earlier.folder


def _refusal(key: str, before: Any, after: Any) -> str:
    return f"{key}={after}: the run began with {before}; leave it as it was, or start a new run without run=."
