"""Runs to the rows of a comparison: what varies among them, what each setting is called, which runs it pools."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.comparison.naming import row_names
from llmtune.comparison.reading import UNTRAINED
from llmtune.comparison.results import RunResult

METHOD, MODEL, RATE = "method.name", "model.name", "train.learning_rate"
NO_BEARING = (
    *("seed", "runs_dir", "cache_dir", "resume_allow", "source_run", "hardware."),
    *("compare.", "evaluate.", "export.", "generate.", "sweep.", "tracking."),
    *("data.licence", "data.num_workers", "data.write_clean"),
    *("train.checkpoint_every_steps", "train.keep_checkpoints", "train.log_every_steps"),
    "method.learning_rate",
)
"""Beginnings of keys that don't decide what is measured. The method's own rate acts through `train.learning_rate`.
The machine's settings part rows only where a sweep has a run for each, see `find_settings`."""
_OF_THE_MACHINE = ("hardware.kind", "hardware.num_processes", "hardware.num_threads")
_LENGTH_OF_TIME = len("20260101-000000")
"""Characters at the beginning of a run folder's name."""
_OF_ITS_CHOICE = (
    (METHOD, ("method.", RATE)),
    (MODEL, ("model.",)),
    ("data.source", ("data.",)),
)
"""A key that brings others along, and their beginnings: where it varies, they count where they vary beside it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs that differ in the seed alone."""

    name: str
    values: Mapping[str, Any]
    """What varies, key to value."""
    runs: tuple[RunResult, ...]
    """One a seed, by seed."""

    @property
    def method(self) -> str:
        """`method.name`."""
        return self.runs[0].method

    @property
    def group(self) -> dict[str, Any]:
        """What poses the question: the model and the data."""
        return {key: value for key, value in self.values.items() if key.startswith(("model.", "data."))}

    @property
    def rest(self) -> dict[str, Any]:
        """What answers it: the method and how it trains."""
        return {key: value for key, value in self.values.items() if key not in self.group}

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its runs."""
        return tuple(run.seed for run in self.runs)

    def on(self, seeds: Sequence[int]) -> tuple[RunResult, ...]:
        """The runs with these seeds, in their order."""
        by_seed = {run.seed: run for run in self.runs}
        return tuple(by_seed[seed] for seed in seeds)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that is compared."""

    axes: tuple[str, ...]
    """The keys that vary, in the config's order."""
    trained: tuple[Setting, ...]
    untrained: tuple[RunResult, ...]
    """Runs that measured a model as it is."""
    notes: tuple[str, ...] = ()


def find_settings(results: Sequence[RunResult]) -> Settings:
    """The settings among some runs, by name.

    Runs that differ only in the machine's settings are one row, unless a sweep has several for one seed: then it varies
    them on purpose.

    Args:
        results: the runs; several of one setting and seed may be among them, of which the newest counts.
    """
    trained = [result for result in results if result.method != UNTRAINED]
    axes = tuple(_varying(trained, results))
    axes += tuple(key for key in _OF_THE_MACHINE if _is_swept(key, trained, axes))
    runs_of: dict[str, list[RunResult]] = {}
    for run in trained:
        runs_of.setdefault(as_text(values_of(run, axes)), []).append(run)
    values = [values_of(runs[0], axes) for runs in runs_of.values()]
    names = row_names(values, trained[0].method if trained else "")
    notes: list[str] = []
    settings = [
        Setting(name=name, values=found, runs=tuple(_newest_of_each_seed(name, runs, notes)))
        for name, found, runs in zip(names, values, runs_of.values(), strict=True)
    ]
    settings.sort(key=lambda setting: setting.name)
    notes += _brought_along(settings)
    untrained = tuple(result for result in results if result.method == UNTRAINED)
    return Settings(axes=axes, trained=tuple(settings), untrained=untrained, notes=tuple(notes))


def values_of(run: RunResult, axes: Sequence[str]) -> dict[str, Any]:
    """The run's values of the keys that vary; a key that it doesn't have is left out."""
    return {key: _value(run, key) for key in axes if key in run.config}


def as_text(value: Any) -> str:
    """A plain value as text that is equal where the values are."""
    return json.dumps(value, sort_keys=True, default=str)


def _value(run: RunResult, key: str) -> Any:
    value = run.config.get(key)
    if key == "source_weights" and value is not None and run.config.get("source_run") is not None:
        return Path(value).name  # each seed's checkpoint stands in a folder of its own
    return value


def _varying(trained: Sequence[RunResult], results: Sequence[RunResult]) -> Iterator[str]:
    keys = dict.fromkeys(key for run in results for key in run.config if not key.startswith(NO_BEARING))
    sections = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    choices = [choice for choice, _ in _OF_ITS_CHOICE]
    for key in sorted(keys, key=lambda key: (sections.index(key.partition(".")[0]), key not in choices)):
        runs = results if key.startswith("model.") else trained
        if any(_differs(alike, key) for alike in _apart(runs, key)):
            yield key


def _is_swept(key: str, trained: Sequence[RunResult], axes: Sequence[str]) -> bool:
    """Whether a sweep has runs that differ in this key and are alike in what varies and in the seed."""
    alike: dict[str, list[RunResult]] = {}
    for run in trained:
        made_at = run.folder.path.name[:_LENGTH_OF_TIME]  # one for all jobs of a sweep
        alike.setdefault(as_text([made_at, run.seed, values_of(run, axes)]), []).append(run)
    return any(_differs(runs, key) for runs in alike.values())


def is_same_setting(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two flat configs say the same of all that decides what is measured, but for the seed.

    Args:
        first: one run's.
        second: the other's.
    """
    keys = {key for key in (*first, *second) if not key.startswith(NO_BEARING)}
    return all(as_text(first.get(key)) == as_text(second.get(key)) for key in keys)


def _apart(runs: Sequence[RunResult], key: str) -> Iterator[Sequence[RunResult]]:
    """The runs; for a key that a choice brings along, those of each choice apart."""
    choice = next((name for name, brought in _OF_ITS_CHOICE if key.startswith(brought) and key != name), None)
    if choice is None:
        yield runs
        return
    by_choice: dict[str, list[RunResult]] = {}
    for run in runs:
        by_choice.setdefault(as_text(run.config.get(choice)), []).append(run)
    yield from by_choice.values()


def _differs(runs: Sequence[RunResult], key: str) -> bool:
    return len({as_text(_value(run, key)) for run in runs}) > 1


def _newest_of_each_seed(name: str, runs: Sequence[RunResult], notes: list[str]) -> Iterator[RunResult]:
    by_seed: dict[int, list[RunResult]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run)
    for seed, alike in sorted(by_seed.items()):
        newest = max(alike, key=lambda run: run.folder.path.name)
        if len(alike) > 1:
            notes.append(
                f"{name} has {len(alike)} runs with seed {seed}; the newest counts, {newest.folder.path.name}."
            )
        yield newest


def _brought_along(settings: Sequence[Setting]) -> Iterator[str]:
    """A sentence for each key that is another for each method without being the method's own default."""
    configs = {setting.method: setting.runs[0].config for setting in settings}
    keys = dict.fromkeys(key for config in configs.values() for key in config if key.startswith("method."))
    varied = {key for setting in settings for key in setting.values}
    for key in keys:
        if key in varied or key.startswith(NO_BEARING):
            continue
        found = {method: config[key] for method, config in configs.items() if key in config}
        if len({as_text(value) for value in found.values()}) > 1:
            listed = ", ".join(f"{value} for {method}" for method, value in found.items())
            yield f"{key} differs with the method: {listed}."
