"""Rows against each other: which stands for its method, how it stands to full fine-tuning, what differs for sure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from llmtune.comparison.aligning import cells_of
from llmtune.comparison.base_models import BaseModels
from llmtune.comparison.crossed import LEVEL
from llmtune.comparison.measuring import base_cells
from llmtune.comparison.outcome import Metric, Pair, Row, Standing
from llmtune.comparison.rows import Setting, as_text
from llmtune.comparison.statistics import Cells, Estimate, Need, estimate, holm, ratio, would_decide

REFERENCE = "full"
"""The method that others are judged by."""
UNREACHABLE = "neither more seeds nor more test examples alone"
"""What would decide where nothing is likely to."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A setting beside full fine-tuning, on the seeds that both have."""

    setting: Setting
    to_full: Estimate
    margin: Cells
    """Loss above full's less what may be missed of full's gain: below 0 is good enough."""
    gain: Cells
    full_gain: Cells


class Ranking:
    """Ranks the rows of one group.

    Args:
        settings: the group's.
        bases: the untrained models.
        metric: what is compared.
        margin: `compare.margin`.
    """

    def __init__(self, settings: Sequence[Setting], bases: BaseModels, metric: Metric, margin: float) -> None:
        self._settings, self._bases = settings, bases
        self._metric: Metric = metric
        self._margin = margin
        self.notes: list[str] = []

    def rank(self, rows: Sequence[Row]) -> list[Row]:
        """The group's rows with what they are to each other, in their order.

        Args:
            rows: a row for each setting.
        """
        chosen = self._choose()
        full = chosen.get(REFERENCE)
        others = [setting for method, setting in chosen.items() if method != REFERENCE]
        judged = {one.setting.name: one for other in others if full and (one := self._judged(other, full))}
        standings = _standings(list(judged.values()))
        self.notes += _without_gain(list(judged.values()), full)
        ranked: list[Row] = []
        for row in rows:
            own, changes = judged.get(row.name), standings.get(row.name, {})
            if own is not None:
                changes = {**changes, "to_full": own.to_full}
            if full is not None and row.name == full.name:
                changes = {"standing": "reference"}
            elif full is not None and own is None and any(row.name == other.name for other in others):
                changes = {"standing": "no claim"}
            ranked.append(replace(row, is_chosen=any(row.name == one.name for one in chosen.values()), **changes))
        return ranked

    def _choose(self) -> dict[str, Setting]:
        """The setting that stands for each method; a method whose settings can't be told apart has none."""
        of_method: dict[str, list[Setting]] = {}
        for setting in self._settings:
            of_method.setdefault(setting.method, []).append(setting)
        chosen = {method: self._best(method, settings) for method, settings in of_method.items()}
        for method, setting in chosen.items():
            if setting is not None:
                self.notes += _at_the_border(setting, of_method[method])
        return {method: setting for method, setting in chosen.items() if setting is not None}

    def _best(self, method: str, settings: Sequence[Setting]) -> Setting | None:
        if len(settings) == 1:
            return settings[0]
        seeds = sorted(set.intersection(*(set(setting.seeds) for setting in settings)))
        losses = [[run.validation_loss for run in setting.on(seeds)] for setting in settings]
        known = [[loss for loss in of_one if loss is not None] for of_one in losses]
        if not seeds or any(len(found) < len(seeds) for found in known):
            why = "have no seed in common" if not seeds else "have no validation loss on every seed"
            self.notes.append(
                f"The {len(settings)} settings of {method} {why}, so none can be chosen to stand for it without "
                "looking at the test set."
            )
            return None
        means = [sum(found) / len(found) for found in known]
        finite = [(mean, place) for place, mean in enumerate(means) if math.isfinite(mean)]
        return settings[min(finite)[1]] if finite else None

    def _judged(self, setting: Setting, full: Setting) -> Judged | None:
        """None where there is no common seed, or no base model to say what full gained."""
        seeds = [seed for seed in setting.seeds if seed in full.seeds]
        if not seeds:
            self.notes.append(f"{setting.name} and {full.name} have no seed in common, so they can't be compared.")
            return None
        base = base_cells(full, len(seeds), self._bases, self._metric)
        if base is None:
            return None
        own, reference = (cells_of([run.tuned for run in one.on(seeds)], self._metric) for one in (setting, full))
        difference, full_gain = own - reference, base - reference
        return Judged(
            setting=setting,
            to_full=estimate(difference),
            margin=difference - self._margin * full_gain,
            gain=base - own,
            full_gain=full_gain,
        )


def _at_the_border(chosen: Setting, settings: Sequence[Setting]) -> Iterator[str]:
    """A sentence where the learning rate that was chosen is the lowest or highest of those that were tried."""
    rates = [float(setting.runs[0].config["train.learning_rate"]) for setting in settings]
    own = float(chosen.runs[0].config["train.learning_rate"])
    if min(rates) == max(rates) or own not in (min(rates), max(rates)):
        return
    tried, better = ("lowest", "lower") if own == min(rates) else ("highest", "higher")
    yield f"{chosen.method}'s chosen learning rate, {own:g}, is the {tried} that was tried; a {better} may be better."


def find_pairs(settings: Sequence[Setting], metric: Metric) -> list[Pair]:
    """The differences of all settings that can be compared, each family of questions corrected by itself.

    Args:
        settings: in the order of their rows.
        metric: what is compared.
    """
    families: dict[str, list[tuple[Setting, Setting]]] = {}
    for first, second in combinations(settings, 2):
        if as_text(first.group) == as_text(second.group):
            families.setdefault(as_text(first.group), []).append((first, second))
        elif as_text(first.rest) == as_text(second.rest):
            families.setdefault("across groups", []).append((first, second))
    return [pair for family in families.values() for pair in _pairs(family, metric)]


def _pairs(family: Sequence[tuple[Setting, Setting]], metric: Metric) -> Iterator[Pair]:
    found = []
    for first, second in family:
        seeds = [seed for seed in first.seeds if seed in second.seeds]
        if seeds:
            cells = [cells_of([run.tuned for run in one.on(seeds)], metric) for one in (first, second)]
            found.append((first, second, estimate(cells[0] - cells[1])))
    adjusted = holm([difference.p_value for _, _, difference in found])
    for (first, second, difference), p_value in zip(found, adjusted, strict=True):
        claimed = p_value <= LEVEL and difference.basis != "examples"
        lower = (first if difference.value < 0 else second) if claimed else None
        yield Pair(
            first=first.name,
            second=second.name,
            difference=difference,
            adjusted_p=p_value,
            lower=lower.name if lower is not None else None,
        )


def with_claims(rows: Sequence[Row]) -> list[Row]:
    """The rows with what can be claimed of each beside the base model: each kind of claim is corrected over all rows.

    Args:
        rows: of the whole comparison, without the base models.
    """
    forgets = _are_above_0([row.forgetting for row in rows])
    is_worse = _are_above_0([row.gain.scaled(-1) if row.gain is not None else None for row in rows])
    return [
        replace(row, forgets=forgot, is_worse_than_base=worse)
        for row, forgot, worse in zip(rows, forgets, is_worse, strict=True)
    ]


def _are_above_0(found: Sequence[Estimate | None]) -> list[bool]:
    """Which of a family of estimates are above 0 for sure; with one seed nothing is."""
    known = [one if one is not None and one.basis != "examples" else None for one in found]
    adjusted = holm([math.nan if one is None else one.p_value for one in known])
    return [
        one is not None and one.value > 0 and p_value <= LEVEL for one, p_value in zip(known, adjusted, strict=True)
    ]


def is_gain(gain: Estimate) -> bool:
    """Whether training lowered the loss for sure."""
    return gain.value > 0 and gain.p_value <= LEVEL


def _without_gain(judged: Sequence[Judged], full: Setting | None) -> Iterator[str]:
    """A sentence for each setting that is judged on a part of full's seeds, on which full's gain isn't clear."""
    for one in judged:
        is_part = full is not None and 1 < one.to_full.num_seeds < len(full.seeds)
        if full is not None and is_part and math.isfinite(one.to_full.value) and not is_gain(estimate(one.full_gain)):
            yield (
                f"On the {one.to_full.num_seeds} seeds that {one.setting.name} and {full.name} have in common the gain "
                f"of {full.name} can't be told from 0, so it can't be said what share of it {one.setting.name} keeps."
            )


def _standings(judged: Sequence[Judged]) -> dict[str, dict]:
    """What is found of each setting beside full: fields of its row, by name."""
    found: dict[str, dict] = {one.setting.name: {"standing": "no claim"} for one in judged}
    gained = [one for one in judged if is_gain(estimate(one.full_gain))]
    tested = [(one, test) for one in gained if (test := estimate(one.margin)).basis != "examples"]
    adjusted = holm([test.p_value for _, test in tested])
    for (one, test), p_value in zip(tested, adjusted, strict=True):
        if math.isnan(p_value):  # a loss isn't finite
            continue
        standing = _standing(test, p_value)
        found[one.setting.name] = {
            "standing": standing,
            "adjusted_p": p_value,
            "quality": ratio(one.gain, one.full_gain),
            "would_decide": _need(one, [test.p_value for _, test in tested], test) if standing == "undecided" else None,
        }
    return found


def _standing(test: Estimate, adjusted_p: float) -> Standing:
    if adjusted_p > LEVEL:
        return "undecided"
    return "good enough" if test.value < 0 else "worse"


def _need(one: Judged, p_values: Sequence[float], test: Estimate) -> str:
    num_left = sum(p_value >= test.p_value for p_value in p_values)
    need: Need = would_decide(one.margin, LEVEL / num_left)
    if need.seeds is not None:
        number = max(1, need.seeds)
        return f"about {number} more seed{'s' if number > 1 else ''}"
    if need.examples_factor is not None:
        is_grouped = test.num_clusters < len(one.setting.runs[0].tuned.example_ids)
        what = "as many independent groups of test examples" if is_grouped else "the test examples"
        return f"about {need.examples_factor:.2g} times {what}"
    return UNREACHABLE
