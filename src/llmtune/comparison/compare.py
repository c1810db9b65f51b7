"""Runs to an answer: rows with error bars, the differences between them, and a verdict."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmtune.comparison.aligning import aligned
from llmtune.comparison.base_models import BaseModels
from llmtune.comparison.cautions import find_notes, have_shared_devices
from llmtune.comparison.fairness import find_unfair
from llmtune.comparison.measuring import base_row, setting_row
from llmtune.comparison.outcome import Comparison, Metric, MissingRun, Pair, Row
from llmtune.comparison.ranking import Ranking, find_pairs, with_claims
from llmtune.comparison.results import RunResult
from llmtune.comparison.rows import Setting, Settings, as_text, find_settings
from llmtune.comparison.verdict import verdict
from llmtune.config.compare import CompareConfig


def compare(
    results: Sequence[RunResult], settings: CompareConfig, title: str, missing: Sequence[MissingRun] = ()
) -> Comparison:
    """What the runs say about each other; where they can't be ranked, why.

    Args:
        results: the runs that measured their weights.
        settings: what counts as good enough, and what time costs.
        title: what the comparison is called.
        missing: runs that were asked for and can't be counted.
    """
    metric = _metric(results)
    counted = find_settings(results)
    unfair = find_unfair(counted, metric)
    found = find_settings(aligned(_runs(counted), metric))
    bases = BaseModels(found)
    notes = find_notes(replace(found, notes=counted.notes), bases, is_ranked=not unfair)
    rows = [setting_row(setting, bases, metric, settings.price_per_hour) for setting in found.trained]
    rows = with_claims(rows)
    pairs: list[Pair] = []
    if unfair:
        rows.sort(key=lambda row: row.name)
    else:
        rows, more_notes = _ranked(rows, found.trained, bases, metric, settings.margin)
        by_name = {setting.name: setting for setting in found.trained}
        pairs = find_pairs([by_name[row.name] for row in rows], metric)
        notes += more_notes
    losses = next((run.tuned for run in _runs(found)), None)
    comparison = Comparison(
        title=title,
        metric=metric,
        axes=found.axes,
        rows=[*(base_row(base, metric) for base in bases.all), *rows],
        pairs=pairs,
        unfair=unfair,
        notes=notes,
        missing=missing,
        margin=settings.margin,
        times_compare=not have_shared_devices(found.trained),
        price_per_hour=settings.price_per_hour,
        num_test_examples=len(losses.example_ids) if losses else 0,
        num_test_tokens=int(losses.num_tokens.sum()) if losses else 0,
        num_clusters=len(np.unique(losses.clusters)) if losses else 0,
    )
    return replace(comparison, verdict=verdict(comparison))


def _metric(results: Sequence[RunResult]) -> Metric:
    """Nats per token compare under one tokenizer only."""
    tokenizers = {run.digests["tokenizer"] for run in results if "tokenizer" in run.digests}
    return "bits_per_byte" if len(tokenizers) > 1 else "loss"


def _runs(settings: Settings) -> list[RunResult]:
    return [*(run for setting in settings.trained for run in setting.runs), *settings.untrained]


def _ranked(
    rows: Sequence[Row], settings: Sequence[Setting], bases: BaseModels, metric: Metric, margin: float
) -> tuple[list[Row], list[str]]:
    """The rows group by group, in each the lowest loss first, and what should be known about their ranking."""
    ranked: list[Row] = []
    notes: list[str] = []
    groups = {as_text(setting.group): setting.group for setting in settings}
    for group in sorted(groups.values(), key=_in_order):
        members = [place for place, setting in enumerate(settings) if as_text(setting.group) == as_text(group)]
        ranking = Ranking([settings[place] for place in members], bases, metric, margin)
        found = ranking.rank([rows[place] for place in members])
        ranked += sorted(found, key=lambda row: row.loss.value if math.isfinite(row.loss.value) else math.inf)
        notes += ranking.notes
    return ranked, notes


def _in_order(group: dict[str, Any]) -> list[tuple[int, float, str]]:
    """Sorts groups by their values: numbers by size, null, which takes all, after them."""
    return list(_order_of(value) for value in group.values())


def _order_of(value: Any) -> tuple[int, float, str]:
    if value is None:
        return (1, 0.0, "")
    number = isinstance(value, int | float)
    return (0, float(value), "") if number else (0, 0.0, str(value))
