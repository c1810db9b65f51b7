"""What weakens a comparison without forbidding it."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llmtune.comparison.base_models import BaseModels, several_general_texts
from llmtune.comparison.fairness import MEASURE_ON, comparable, named_runs, names_of
from llmtune.comparison.results import RunResult
from llmtune.comparison.rows import Setting, Settings
from llmtune.comparison.wording import listed

_FEW_EXAMPLES = 20
_SAME_BASE_LOSS = 1e-4
"""Nats per token by which two measurements of one base model may differ without a word: sums in another order."""
_THREADS = "hardware.num_threads"
_COMPUTED_WITH = (("precision", "precision"), ("attention", "attention"))


def find_notes(settings: Settings, bases: BaseModels, *, is_ranked: bool) -> list[str]:
    """What should be known about the runs, a sentence each.

    Args:
        settings: the runs by setting.
        bases: their base models.
        is_ranked: whether they are compared at all; else nothing is said of how.
    """
    runs = [run for _, run in named_runs(settings)]
    return [
        *settings.notes,
        *_few_examples(runs),
        *(_seeds(settings.trained) if is_ranked else ()),
        *_versions(runs),
        *_computed_otherwise(settings),
        *_other_threads(settings),
        *_shared_devices(settings.trained),
        *(_base(bases) if runs else ()),
        *_without_record(settings.trained),
        *_not_known_to_be_new(settings.trained),
        *_other_general_texts(settings),
        *_not_finite(settings.trained),
    ]


def _few_examples(runs: Sequence[RunResult]) -> Iterator[str]:
    fewest = min((len(run.tuned.example_ids) for run in runs), default=_FEW_EXAMPLES)
    if fewest < _FEW_EXAMPLES:
        yield f"There are only {fewest} test examples: the intervals say little about others. Take 100 or more."
        return
    groups = min((len(np.unique(run.tuned.clusters)) for run in runs), default=_FEW_EXAMPLES)
    if groups < _FEW_EXAMPLES:
        yield (
            f"The test examples belong to only {groups} independent groups, such as documents: the intervals say "
            "little about others. Take 100 or more."
        )


def _seeds(trained: Sequence[Setting]) -> Iterator[str]:
    compared = [setting for setting in trained if any(_are_compared(setting, other) for other in trained)]
    all_seeds = sorted({seed for setting in compared for seed in setting.seeds})
    lacking = {setting.name: [seed for seed in all_seeds if seed not in setting.seeds] for setting in compared}
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for name, seeds in lacking.items():
        if seeds:
            by_seeds.setdefault(tuple(seeds), []).append(name)
    for seeds, names in by_seeds.items():
        numbers = listed([str(seed) for seed in seeds])
        yield (
            f"Seed{'s' if len(seeds) > 1 else ''} {numbers} missing for {listed(names)}: two settings are compared on "
            "the seeds that both have."
        )


def _are_compared(first: Setting, second: Setting) -> bool:
    return first is not second and comparable(first, second) and not set(first.seeds).isdisjoint(second.seeds)


def _versions(runs: Sequence[RunResult]) -> Iterator[str]:
    packages = dict.fromkeys(package for run in runs for package in run.versions)
    for package in packages:
        found = sorted({run.versions[package] for run in runs if package in run.versions})
        if len(found) > 1:
            yield f"The runs were made with several versions of {package} ({listed(found)}): that may move losses."


def _computed_otherwise(settings: Settings) -> Iterator[str]:
    runs = [run for setting in settings.trained for run in setting.runs]
    for choice, word in _COMPUTED_WITH:
        found = _distinct(runs, lambda run, choice=choice: run.choices.get(choice))
        if len(found) > 1:
            yield f"The runs were trained with another {word} ({listed(found)}): times and memory don't compare."
    measured = _distinct(runs, lambda run: run.choices.get("evaluate_precision"))
    if len(measured) > 1:
        yield f"The test losses were computed in other precisions ({listed(measured)}), which moves them a little."
    devices = _distinct(runs, lambda run: run.cost.device and f"{run.cost.num_devices} x {run.cost.device}")
    if len(devices) > 1:
        yield f"The runs were trained on other devices ({listed(devices)}): times and memory don't compare."


def _other_threads(settings: Settings) -> Iterator[str]:
    runs = [run for setting in settings.trained for run in setting.runs]
    on_cpu = [run for run in runs if run.choices.get("device") == "cpu"]
    found = _distinct(on_cpu, lambda run: run.choices.get("num_threads"))
    if _THREADS not in settings.axes and len(found) > 1:
        yield f"The runs were trained with other numbers of CPU threads ({listed(found)}): times don't compare."


def _distinct(runs: Sequence[RunResult], value_of: Callable[[RunResult], object]) -> list[str]:
    return sorted({str(value) for run in runs if (value := value_of(run)) is not None})


def _base(bases: BaseModels) -> Iterator[str]:
    if not bases.all:
        yield "The base model wasn't measured, so it can't be said what training gained; leave evaluate.base=true."
    for base in bases.all:
        means = [float(losses.loss_sums.sum() / losses.num_tokens.sum()) for losses in base.measured]
        if max(means) - min(means) > _SAME_BASE_LOSS:
            yield (
                f"The loss of the {base.name} was measured as {min(means):.4f} and as {max(means):.4f} by runs of this "
                "comparison: they computed it in other ways. The first is taken."
            )


def have_shared_devices(trained: Sequence[Setting]) -> bool:
    """Whether a run trained beside another on the same device, so that its times are of a share of it."""
    return any(_jobs_at_once(run) > 1 for setting in trained for run in setting.runs)


def _shared_devices(trained: Sequence[Setting]) -> Iterator[str]:
    if have_shared_devices(trained):
        number = max(_jobs_at_once(run) for setting in trained for run in setting.runs)
        yield (
            f"Jobs shared a device, up to {number} at once, so times, speeds and prices don't compare; "
            "sweep.num_parallel=1 gives each the device for itself."
        )


def _jobs_at_once(run: RunResult) -> int:
    return run.choices.get("jobs_at_once") or 1


def _not_known_to_be_new(trained: Sequence[Setting]) -> Iterator[str]:
    names = [setting.name for setting in trained if any(run.num_test_seen is None for run in setting.runs)]
    if names:
        yield (
            f"Whether test examples also stand in what {listed(names)} learnt from can't be checked. Measure again on "
            f"a file that is new to all runs: {MEASURE_ON}."
        )


def _other_general_texts(settings: Settings) -> Iterator[str]:
    runs = named_runs(settings)
    name_of = {run.folder.path: name for name, run in runs}
    for texts in several_general_texts([run for _, run in runs]).values():
        names = [names_of([(name_of[run.folder.path], run) for run in alike]) for alike in texts]
        yield (f"The general text differs ({'; '.join(names)}), so what was forgotten doesn't compare and is left out.")


def _without_record(trained: Sequence[Setting]) -> Iterator[str]:
    digests = ("train", "data")
    unknown = [
        setting.name for setting in trained if not all(any(d in run.digests for d in digests) for run in setting.runs)
    ]
    if unknown:
        yield f"What {listed(unknown)} was trained on isn't recorded, so it can't be checked that it was the same."


def _not_finite(trained: Sequence[Setting]) -> Iterator[str]:
    for setting in trained:
        seeds = [str(run.seed) for run in setting.runs if not np.isfinite(run.tuned.loss_sums).all()]
        if seeds:
            yield (
                f"{setting.name} has a test loss that isn't finite (seed {listed(seeds)}): it diverged, and never wins."
            )
