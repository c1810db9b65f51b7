"""What weakens a comparison without forbidding it."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llmtune.comparison.base_models import BaseModels
from llmtune.comparison.fairness import listed, named_runs
from llmtune.comparison.results import RunResult
from llmtune.comparison.rows import Setting, Settings

_FEW_EXAMPLES = 20
_SAME_BASE_LOSS = 1e-4
"""Nats per token by which two measurements of one base model may differ without a word: sums in another order."""
_COMPUTED_WITH = (("precision", "precision"), ("attention", "attention"))


def find_notes(settings: Settings, bases: BaseModels) -> list[str]:
    """What should be known about the runs, a sentence each.

    Args:
        settings: the runs by setting.
        bases: their base models.
    """
    runs = [run for _, run in named_runs(settings)]
    return [
        *settings.notes,
        *_few_examples(runs),
        *_seeds(settings.trained),
        *_versions(runs),
        *_computed_otherwise(settings),
        *(_base(bases) if runs else ()),
        *_without_record(settings.trained),
        *_not_finite(settings.trained),
    ]


def _few_examples(runs: Sequence[RunResult]) -> Iterator[str]:
    fewest = min((len(run.tuned.example_ids) for run in runs), default=_FEW_EXAMPLES)
    if fewest < _FEW_EXAMPLES:
        yield f"There are only {fewest} test examples: the intervals say little about others. Take 100 or more."


def _seeds(trained: Sequence[Setting]) -> Iterator[str]:
    all_seeds = sorted({seed for setting in trained for seed in setting.seeds})
    lacking = {setting.name: [seed for seed in all_seeds if seed not in setting.seeds] for setting in trained}
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
