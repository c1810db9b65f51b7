"""What was typed, done: composed, checked, put into a run folder, started."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.arguments import STAGES, Arguments
from llmtune.config.compose import Composition, compose
from llmtune.config.run import RunConfig
from llmtune.config.saved import config_text, load_config
from llmtune.continuation import NEEDS_TRAINING, check_changes, folder_to_go_on_in
from llmtune.errors import ConfigError
from llmtune.runs.layout import RunFolder
from llmtune.starting_point import StartingPoint, starting_point

_OF_THE_SWEEP = ("run", "runs_dir", "tracking.uri", "tracking.ui_port")
"""What may be typed where a sweep is gone on with, besides `sweep.*` and `compare.*`."""


@dataclass(frozen=True)
class Outcome:
    """What became of it."""

    status: int
    """The exit status: 0 only if everything asked for was done."""
    folder: RunFolder | None = None
    """The run's folder; None for a sweep, a command, and where nothing was run."""


def perform(arguments: Arguments) -> Outcome:
    """Do what was typed.

    Raises:
        LlmtuneError: what a user can mend, or what made a stage fail.
    """
    if arguments.multirun and arguments.run is not None and not arguments.hydra_only:
        return Outcome(_go_on_with_sweep(arguments, arguments.run))
    start = starting_point(arguments)
    options, show_only = _without_own(arguments)
    composed = compose(_composition(arguments, start, options), _Jobs(arguments, show_only))
    if arguments.hydra_only:
        return Outcome(0)
    if isinstance(composed, list):
        return Outcome(1 if any(composed) else 0)
    if composed.resume_allow and start.run is None:
        raise ConfigError(NEEDS_TRAINING)
    if show_only:
        print(config_text(composed), end="")
        return Outcome(0)
    if arguments.command is not None:
        return Outcome(_run_command(arguments.command, composed, start))
    return _run_stages(composed, start, arguments.stages or list(STAGES))


def config_for(arguments: Arguments) -> RunConfig:
    """The config that a command which makes no run works with.

    Raises:
        LlmtuneError: what a user can mend.
    """
    start = starting_point(arguments)
    composed = compose(_composition(arguments, start, ()), _refuse_sweep)
    assert isinstance(composed, RunConfig)
    return _with_weights(composed, start)


def _refuse_sweep(configs: list[RunConfig], overrides: list[list[str]]) -> list[int]:
    raise ConfigError(f"{' '.join(overrides[0])}, …: is a sweep of {len(configs)} runs; start it on the command line.")


def _composition(arguments: Arguments, start: StartingPoint, options: Sequence[str]) -> Composition:
    return Composition(
        hydra_options=options,
        overrides=start.with_typed(arguments.overrides),
        saved=start.saved,
        finish=lambda config: start.applied(config, arguments),
        begun=start.run is not None,
    )


class _Jobs:
    """Takes a sweep's configs."""

    def __init__(self, arguments: Arguments, show_only: bool) -> None:
        self._arguments = arguments
        self._show_only = show_only

    def __call__(self, configs: list[RunConfig], overrides: list[list[str]]) -> list[int]:
        arguments = self._arguments
        if arguments.command or arguments.run:
            raise ConfigError("-m: a sweep runs stages on new runs; leave out the command or run=.")
        if any(config.resume_allow for config in configs):
            raise ConfigError(NEEDS_TRAINING)
        first = [configs.index(config) for config in configs]
        once = sorted(set(first))
        if len(once) < len(configs):
            print(f"llmtune: {_equal(len(configs) - len(once))}", file=sys.stderr)
        if self._show_only:
            print(f"llmtune: the first of {len(once)} jobs", file=sys.stderr)
            print(config_text(configs[0]), end="")
            return [0] * len(configs)
        from llmtune.sweep.jobs import run_sweep_of

        chosen, typed = [configs[at] for at in once], [overrides[at] for at in once]
        statuses = dict(zip(once, run_sweep_of(chosen, typed, arguments.stages or list(STAGES)), strict=True))
        return [statuses[at] for at in first]


def _equal(count: int) -> str:
    alike = "1 job is equal to another and isn't" if count == 1 else f"{count} jobs are equal to others and aren't"
    return f"{alike} run again"


def _go_on_with_sweep(arguments: Arguments, reference: str) -> int:
    """Run what is left of the sweep that `run=` names; the exit status."""
    from llmtune.runs.lookup import find_sweep
    from llmtune.sweep.going_on import config_of_sweep, finish_sweep

    folder = find_sweep(reference, Path(arguments.typed.get("runs_dir", "runs")))
    _check_sweep_stays(arguments)
    composed = compose(Composition(overrides=arguments.overrides, saved=config_of_sweep(folder)))
    assert isinstance(composed, RunConfig)
    if _without_own(arguments)[1]:
        print(config_text(composed), end="")
        return 0
    return finish_sweep(folder, composed, arguments.typed.get("tracking.uri"))


def _check_sweep_stays(arguments: Arguments) -> None:
    """Refuse what would make the jobs that are left differ from those that are done."""
    if arguments.command:
        raise ConfigError(f"-m: a sweep runs stages; leave out {arguments.command}.")
    words = [word for word in arguments.words if word.lstrip("+").partition("=")[0] not in _OF_THE_SWEEP]
    words = [word for word in words if not word.lstrip("+").startswith(("sweep.", "compare."))]
    options = [option for option in ("--config-name", "--config-dir") if arguments.option(option) is not None]
    problems = [
        f"{word}: a sweep goes on as it began; leave it out (sweep.*, compare.*, tracking.uri and tracking.ui_port "
        "may change), or start a new one without run=."
        for word in (*words, *options)
    ]
    if problems:
        raise ConfigError(problems)


def _run_command(command: str, config: RunConfig, start: StartingPoint) -> int:
    from llmtune.commands import generate, ui
    from llmtune.logs import silence_libraries, start_logging
    from llmtune.signals import terminable

    silence_libraries()
    start_logging(None)
    with terminable():
        return ui.run(config) if command == "ui" else generate.run(_with_weights(config, start))


def _with_weights(config: RunConfig, start: StartingPoint) -> RunConfig:
    """The config with the weights of the run that the work goes on from."""
    if start.run is None:
        return config
    check_changes(config, start.run, trains=False)
    source = config.source_run or (None if config.is_trained_elsewhere else str(start.run.folder.path))
    weights = str(start.run.checkpoint) if start.run.checkpoint else config.source_weights
    return dataclasses.replace(config, source_run=source, source_weights=weights)


def _run_stages(config: RunConfig, start: StartingPoint, stages: list[str]) -> Outcome:
    from llmtune.launch import launch, shared_folder
    from llmtune.runs.lookup import start_run_folder

    run = start.run
    folder = shared_folder(
        lambda: folder_to_go_on_in(config, run, stages) if run else start_run_folder(config), config.hardware
    )
    return Outcome(launch(folder, load_config(folder.config_file), stages), folder)


def _without_own(arguments: Arguments) -> tuple[list[str], bool]:
    """Hydra's options less those that are answered here: `--config-name`, and `--cfg job` (whether it was there)."""
    shown = arguments.option("--cfg")
    if shown not in (None, "job"):
        raise ConfigError(f"--cfg {shown}: only --cfg job is known.")
    options, left = [], list(arguments.options)
    while left:
        option = left.pop(0)
        if option in ("--cfg", "--config-name"):
            left.pop(0)
        else:
            options.append(option)
    return options, shown is not None
