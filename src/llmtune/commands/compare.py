"""`compare`: the runs of a sweep, or any others, side by side with error bars, from their records alone."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from llmtune.arguments import parse
from llmtune.config.compose import Composition, compose
from llmtune.config.run import RunConfig
from llmtune.config.saved import first_readable, load_plain
from llmtune.config.schema import keys
from llmtune.config.validate import nearest
from llmtune.errors import ConfigError, RunError
from llmtune.pages.numbers import counted

_OWN_KEYS = ("run", "runs", "runs_dir")
_CONFIG_KEYS = ("tracking.uri", "tracking.ui_port")


@dataclass(frozen=True)
class CompareRequest:
    """What was asked for."""

    references: tuple[str, ...] = ("latest",)
    """Sweeps and runs; one sweep alone keeps the comparison in its own folder."""
    runs_dir: Path = Path("runs")
    overrides: tuple[str, ...] = ()
    """Of the config, as typed."""

    def typed(self, key: str) -> str | None:
        """What was typed for a key of the config; None where nothing was."""
        found = [override.partition("=")[2] for override in self.overrides if override.partition("=")[0] == key]
        return found[-1] if found else None


def parse_request(arguments: Sequence[str]) -> CompareRequest:
    """Take apart what stands after `llmtune compare`.

    Raises:
        ConfigError: with every key or word that makes no sense.
    """
    allowed = [*(key.name for key in keys() if key.name.startswith("compare.")), *_CONFIG_KEYS]
    typed: dict[str, str] = {}
    problems: list[str] = []
    for word in arguments:
        key, equals, value = word.lstrip("+").partition("=")
        if not equals or word.startswith("-"):
            problems.append(f"{word}: compare takes KEY=VALUE, such as run={word.lstrip('-') or 'latest'}.")
        elif key not in (*_OWN_KEYS, *allowed):
            problems.append(f"{key}: compare has no such key.{nearest(key, [*_OWN_KEYS, *allowed])}")
        elif not value.strip():
            problems.append(f"{key}=: is empty; name one, or leave it out.")
        else:
            typed[key] = value
    if "run" in typed and "runs" in typed:
        problems.append("run= and runs=: leave one out; runs=[A,B] takes sweeps and runs.")
    asked = "runs" if "runs" in typed else "run"
    references = _references(typed.get(asked, "latest"))
    if not references:
        problems.append(f"{asked}={typed[asked]}: names nothing; name a sweep or runs, such as runs=[A,B].")
    if problems:
        raise ConfigError(problems)
    own = {key: value for key, value in typed.items() if key not in _OWN_KEYS}
    runs_dir = Path(typed.get("runs_dir", "runs")).expanduser()
    return CompareRequest(references, runs_dir, tuple(f"{key}={value}" for key, value in own.items()))


def run(arguments: Sequence[str]) -> int:
    """Compare what was asked for, show and keep the comparison, and return the exit status.

    Returns:
        0; 1 where nothing may be ranked.

    Raises:
        ConfigError: what was typed makes no sense.
        RunError: a run or sweep isn't there, or none of the runs can be compared.
    """
    from llmtune.comparison.gathering import compare_candidates
    from llmtune.comparison.tables import show_comparison
    from llmtune.logs import say, silence_libraries, start_logging
    from llmtune.runs.lookup import new_comparison_folder
    from llmtune.sweep.candidates import candidates_of
    from llmtune.sweep.comparing import keep, log_comparison, say_side_by_side
    from llmtune.tracking.dead_runs import mark_dead_runs
    from llmtune.tracking.store import resolve_tracking_uri

    request = parse_request(arguments)
    typed_uri = request.typed("tracking.uri")
    if typed_uri is not None:
        resolve_tracking_uri(typed_uri, Path.cwd())  # one that can never be a store is told before the work
    silence_libraries()
    start_logging(None)
    with suppress(OSError):  # where the runs may only be read
        mark_dead_runs(request.runs_dir, None)
    named = candidates_of(request.references, request.runs_dir)
    config = _config([candidate.folder.config_file for candidate in named.candidates], request)
    title = named.sweep.path.name if named.sweep else counted(len(named.candidates), "run")
    comparison = compare_candidates(named.candidates, config.compare, title)
    if not comparison.rows:
        reasons = "; ".join(f"{missing.name}: {missing.error}" for missing in comparison.missing)
        raise RunError(f"none of the runs can be compared: {reasons}")
    show_comparison(comparison)
    files = keep(comparison, lambda: named.sweep or new_comparison_folder(request.runs_dir, datetime.now()))
    if files is not None:
        say(f"the comparison: {files.page}")
    if named.sweep:
        log_comparison(named.sweep, comparison, files, typed_uri)
    say_side_by_side(comparison, config.tracking, typed_uri)
    return 1 if comparison.unfair else 0


def _references(value: str) -> tuple[str, ...]:
    """The parts of `[A,B]` or `A,B`, each taken as typed."""
    listed = re.sub(r"^\[(.*)\]$", r"\1", value.strip())
    return tuple(dict.fromkeys(part.strip() for part in listed.split(",") if part.strip()))


def _config(files: Sequence[Path], request: CompareRequest) -> RunConfig:
    """The config of the first run that has one which can be read, with what was typed on top.

    Raises:
        LlmtuneError: none can be read: what is wrong with the first; or what was typed makes no sense.
    """
    file = first_readable(files) or files[0]
    overrides = parse(request.overrides).overrides
    composed = compose(Composition(overrides=overrides, saved=load_plain(file)))
    assert isinstance(composed, RunConfig)
    return composed
