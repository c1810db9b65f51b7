"""What `llmtune runs` was asked for: its flags, and which runs match its KEY=VALUE words."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from llmtune.commands.run_entries import STATUSES, RunEntry
from llmtune.config.schema import keys, verbatim_keys
from llmtune.config.validate import nearest
from llmtune.errors import ConfigError

SORTS = ("started", "loss", "time", "name")
DEFAULT_LIMIT = 20
_FLAGS = ("--status", "--method", "--model", "--sort", "--limit", "--follow", "--json")
_OWN_KEYS = ("run", "runs_dir", "status", "sweep")
_SHORT_KEYS: dict[str, tuple[str, ...]] = {
    "method": ("method.name",),
    "model": ("model.name", "model.id", "model.path"),
    "data": ("data.source", "data.path", "data.id"),
}
_PATH_KEYS = ("data.path", "data.eval_path", "model.path")


@dataclass(frozen=True)
class Filter:
    """One condition, as typed."""

    key: str
    value: str

    @property
    def accepted(self) -> list[str]:
        """The values that pass: the typed one, and its parts where it has commas and isn't a text or a list."""
        if self.key in verbatim_keys() or self.value.startswith("["):
            return [self.value]
        return [self.value, *(part.strip() for part in self.value.split(","))]

    def matches(self, entry: RunEntry) -> bool:
        """Whether the run passes."""
        return any(_same(value, typed) for value in self.found(entry) for typed in self.accepted)

    def found(self, entry: RunEntry) -> list[Any]:
        """The run's own values of this key."""
        if self.key == "status":
            return [entry.status]
        if self.key == "sweep":
            return [entry.sweep] if entry.sweep else []
        names = _SHORT_KEYS.get(self.key, (self.key,))
        values = [entry.config[name] for name in names if name in entry.config]
        files = [Path(entry.config[name]).name for name in names if name in _PATH_KEYS and entry.config.get(name)]
        return [*values, *files]


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    runs_dir: Path = Path("runs")
    run: str | None = None
    filters: list[Filter] = field(default_factory=list)
    sort: str = "started"
    limit: int | None = None
    follow: bool = False
    as_json: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"runs: {message}")


def parse_request(arguments: Sequence[str]) -> Request:
    """Take apart what stands after `llmtune runs`.

    Raises:
        ConfigError: with every flag, key or value that makes no sense.
    """
    parser = _Parser(prog="llmtune runs", add_help=False, allow_abbrev=False)
    for flag in _FLAGS:
        parser.add_argument(flag, action="store_true" if flag in ("--follow", "--json") else "store")
    flags, rest = parser.parse_known_args(arguments)
    problems: list[str] = []
    typed = [(word, *word.lstrip("+").partition("=")[::2]) for word in rest]
    words = [(key, value) for word, key, value in typed if "=" in word and not word.startswith("-")]
    problems += [_not_a_filter(word) for word, _, _ in typed if "=" not in word or word.startswith("-")]
    words += [(key, getattr(flags, key)) for key in ("status", "method", "model") if getattr(flags, key) is not None]
    own = {key: value for key, value in words if key in ("run", "runs_dir")}
    filters = [_filter(key, value, problems) for key, value in words if key not in own]
    if flags.sort is not None and flags.sort not in SORTS:
        problems.append(f"--sort {flags.sort}: must be one of {', '.join(SORTS)}.{nearest(flags.sort, list(SORTS))}")
    if flags.limit is not None and not (flags.limit.isdecimal() and int(flags.limit) > 0):
        problems.append(f"--limit {flags.limit}: must be a whole number from 1 up.")
    if flags.follow and flags.json:
        problems.append("--json: can't stand beside --follow.")
    runs_dir = Path(own.get("runs_dir", "runs")).expanduser()
    if "runs_dir" in own and not runs_dir.is_dir():
        problems.append(f"runs_dir={own['runs_dir']}: there is no such folder.")
    if problems:
        raise ConfigError(problems)
    return Request(
        runs_dir=runs_dir,
        run=own.get("run"),
        filters=filters,
        sort=flags.sort or "started",
        limit=int(flags.limit) if flags.limit else None,
        follow=flags.follow,
        as_json=flags.json,
    )


def sort_key(name: str) -> Callable[[RunEntry], Any]:
    """The order that `--sort NAME` means, for runs that already stand newest first."""
    if name == "loss":
        kinds = ("test", "validation", "train")
        return lambda entry: (kinds.index(entry.loss.kind), entry.loss.value) if entry.loss else (len(kinds), 0.0)
    if name == "time":
        return lambda entry: -(entry.seconds if entry.seconds is not None else -1.0)
    return lambda entry: entry.name if name == "name" else 0


def _not_a_filter(word: str) -> str:
    if word.startswith("-"):
        option = word.partition("=")[0]
        return f"{option}: runs has no such option.{nearest(option, list(_FLAGS))} It has: {', '.join(_FLAGS)}."
    return f"{word}: runs takes KEY=VALUE, such as method=lora or run={word}."


def _filter(key: str, value: str, problems: list[str]) -> Filter:
    known = [*_OWN_KEYS, *_SHORT_KEYS, *(known.name for known in keys())]
    if key not in known:
        leaves = {name.rpartition(".")[2]: name for name in known}  # train.learning_rate before method.learning_rate
        hint = f" Did you mean {leaves[key]}?" if key in leaves else nearest(key, known)
        others = f" Any key of the config is one, and {', '.join((*_SHORT_KEYS, *_OWN_KEYS))}."
        problems.append(f"{key}={value}: there is no such key.{hint or others}")
    if key == "status":
        statuses = {status.lower(): status for status in STATUSES}
        plain = [part.strip().replace("_", " ").lower() for part in value.split(",")]
        for part in plain:
            if part not in statuses:
                allowed = [status.lower().replace(" ", "_") for status in STATUSES]
                problems.append(f"status={part}: must be one of {', '.join(allowed)}.{nearest(part, allowed)}")
        return Filter(key, ",".join(statuses.get(part, part) for part in plain))
    return Filter(key, value)


def _same(value: Any, typed: str) -> bool:
    """Whether a saved value is the typed one: numbers as numbers, texts or paths as such, the rest as YAML."""
    if isinstance(value, str):
        return value in (typed, str(Path(typed).expanduser().absolute()))
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(typed) == value
        except ValueError:
            return False
    try:
        return yaml.safe_load(typed.lower() if value is None or isinstance(value, bool) else typed) == value
    except yaml.YAMLError:
        return False
