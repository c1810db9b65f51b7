"""The command line: compose and check the config, make the run folder, start the work."""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from llmtune.arguments import STAGES, Arguments, parse
from llmtune.config.compose import Composition, compose
from llmtune.config.run import RunConfig
from llmtune.config.saved import config_text, load_config
from llmtune.distributed import is_first
from llmtune.errors import ConfigError, Interrupted, LlmtuneError, explained, report
from llmtune.runs.layout import RunFolder

_NAMES_DATA = ("data", "data.path", "data.id", "run", "experiment")


def main() -> None:
    """Run the command that `sys.argv` holds and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(typed: Sequence[str]) -> int:
    """Do what was typed.

    Args:
        typed: the arguments after the program's name.

    Returns:
        The exit status: 0 only if everything asked for was done, 2 for the user's mistake, 130 when interrupted.
    """
    try:
        arguments = parse(typed)
        if "--help" in arguments.options:
            from llmtune.help_page import help_page

            print(help_page())
            return 0
        if "--version" in arguments.options:
            print(f"llmtune {version('llmtune')}")
            return 0
        return _execute(arguments)
    except LlmtuneError as error:
        return report(error)
    except OSError as error:
        line = explained(error)
        if line is None:
            raise
        return report(LlmtuneError(line))
    except KeyboardInterrupt:
        return report(Interrupted("interrupted"))


def _execute(arguments: Arguments) -> int:
    stages = arguments.stages or list(STAGES)

    def run_jobs(configs: list[RunConfig], overrides: list[list[str]]) -> list[int]:
        if arguments.command or arguments.run:
            raise ConfigError("-m: a sweep runs stages on new runs; leave out the command or run=.")
        if show_only:
            print(f"llmtune: the first of {len(configs)} jobs", file=sys.stderr)
            print(config_text(configs[0]), end="")
            return [0] * len(configs)
        from llmtune.sweep.jobs import run_sweep_of

        return run_sweep_of(configs, overrides, stages)

    options, show_only = _without_cfg(arguments.options)
    earlier = None
    if arguments.run is not None:
        from llmtune.continuation import earlier_run

        earlier = earlier_run(arguments.run, Path(arguments.typed.get("runs_dir", "runs")))
    composition = Composition(options, _overrides(arguments), earlier.config if earlier else None)
    composed = compose(composition, run_jobs)
    if arguments.hydra_only:
        return 0
    if isinstance(composed, list):
        return 1 if any(composed) else 0
    if show_only:
        print(config_text(composed), end="")
        return 0
    if arguments.command is not None:
        return _run_command(arguments.command, composed, earlier.folder if earlier else None)
    from llmtune.continuation import folder_to_go_on_in
    from llmtune.launch import launch, shared_folder
    from llmtune.runs.lookup import start_run_folder

    folder = shared_folder(
        lambda: folder_to_go_on_in(composed, earlier, stages) if earlier else start_run_folder(composed),
        composed.hardware,
    )
    return launch(folder, load_config(folder.config_file), stages)


def _run_command(command: str, config: RunConfig, folder: RunFolder | None) -> int:
    from llmtune.commands import generate, ui
    from llmtune.logs import silence_libraries, start_logging

    silence_libraries()
    start_logging(None)
    return ui.run(config) if command == "ui" else generate.run(config, folder)


def _overrides(arguments: Arguments) -> list[str]:
    """What was typed, after the quick start or a command's data where no data is named."""
    if arguments.hydra_only or any(key in _NAMES_DATA for key in arguments.typed):
        return arguments.overrides
    if arguments.command is not None:
        return ["data=embedded_code", *arguments.overrides]
    if is_first():
        print("llmtune: no data named, so this is experiment=quickstart; data.path=FILE takes yours", file=sys.stderr)
    return ["experiment=quickstart", *arguments.overrides]


def _without_cfg(options: list[str]) -> tuple[list[str], bool]:
    """Hydra's options less `--cfg job`, which is answered here after the checks; and whether it was there."""
    if "--cfg" not in options:
        return options, False
    at = options.index("--cfg")
    if options[at + 1] != "job":
        raise ConfigError(f"--cfg {options[at + 1]}: only --cfg job is known.")
    return [*options[:at], *options[at + 2 :]], True
