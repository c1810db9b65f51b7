"""The page on a comparison: the verdict and what it rests on, at one look and then in detail."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from llmtune.comparison import wording
from llmtune.comparison.outcome import Comparison
from llmtune.comparison.plots import (
    cost_plots,
    forgetting_plot,
    loss_curves,
    loss_plot,
    row_kinds,
    sweep_map,
    to_full_plot,
)
from llmtune.comparison.tables import Cell, Table, cost_table, pair_table, quality_table
from llmtune.pages.elements import Content, Html, element, joined
from llmtune.pages.numbers import counted
from llmtune.pages.page import in_sight, listing, section, table, verdict, write_page
from llmtune.pages.series import Kind, key

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")
_REFUSAL = "Nothing is ranked: "
_PAIRS_IN_SIGHT = 10


def write_comparison_page(path: Path, comparison: Comparison) -> None:
    """Write a comparison as a page that stands alone.

    Args:
        path: the file; one that is there is replaced.
        comparison: what is shown; the loss curves are read from its runs' folders, where they still are.
    """
    num_runs = sum(len(row.runs) for row in comparison.rows if not row.is_base)
    lead = f"{counted(num_runs, 'run')} measured on {wording.test_set(comparison)}"
    parts = [
        _verdict(comparison),
        _quality(comparison),
        _costs(comparison),
        cost_plots(comparison),
        _notes(comparison),
        to_full_plot(comparison),
        loss_plot(comparison),
        sweep_map(comparison),
        loss_curves(comparison),
        _pairs(comparison),
        forgetting_plot(comparison),
        _missing(comparison),
        _intervals(comparison),
        _runs(comparison),
    ]
    write_page(path, f"Comparison: {comparison.title}", lead, *parts)


def _verdict(comparison: Comparison) -> Html:
    """The box at the top: what to do, or why nothing is ranked."""
    sentences = _SENTENCE.split(comparison.verdict.strip()) if comparison.verdict.strip() else []
    if comparison.unfair:
        told = " ".join(comparison.unfair)
        # In the verdict a reason may begin with a small letter.
        rest = [sentence for sentence in sentences if sentence.removeprefix(_REFUSAL)[1:] not in told]
        return verdict("problem", "These runs can't fairly be ranked", [*comparison.unfair, *rest])
    if not sentences:
        return verdict("problem", "There is no verdict", [])
    return verdict(_outcome(comparison), sentences[0], sentences[1:])


def _outcome(comparison: Comparison) -> Literal["good", "neutral", "problem"]:
    """Good where a row can stand for full, or without a full row one is better; neutral where all others are worse."""
    standings = {row.standing for row in comparison.rows} - {None}
    if not standings:
        return "good" if any(pair.lower for pair in comparison.pairs) else "problem"
    if "good enough" in standings:
        return "good"
    return "neutral" if "worse" in standings else "problem"


def _quality(comparison: Comparison) -> Html:
    shown = quality_table(comparison)
    note = wording.quality_note(comparison) or "Lower is better. Small figures are 95 % intervals."
    has_quality = "quality" in shown.columns
    return section("Quality" if has_quality else "Losses", _drawn(shown, row_kinds(comparison)), note=note)


def _costs(comparison: Comparison) -> Html:
    shown = cost_table(comparison)
    if not shown.rows:
        return Html()
    devices = sorted({row.cost.device for row in comparison.rows if row.cost.device})
    note = "Means over a row's runs; tokens without padding, over all devices."
    if "price" in shown.columns:
        note += f" Price at {comparison.price_per_hour:g} an hour."
    if devices:
        note += f" Measured on {wording.listed(devices)}."
    return section("Cost of training", _drawn(shown, row_kinds(comparison)), note=note)


def _pairs(comparison: Comparison) -> Html:
    shown = pair_table(comparison)
    if not shown.rows:
        return Html()
    note = (
        "The first's loss less the second's on the seeds that both have. Bold: a claim that holds at 5 % after Holm's "
        f"correction over {counted(len(shown.rows), 'pair')}."
    )
    # Claims first; the sort leaves the others in their order.
    order = sorted(zip(comparison.pairs, shown.rows, strict=True), key=lambda entry: entry[0].lower is None)
    rows = [row for _, row in order]
    num_shown = in_sight(len(rows), _PAIRS_IN_SIGHT)
    parts = [_drawn(replace(shown, rows=rows[:num_shown]), {})]
    if folded := rows[num_shown:]:
        summary = element("summary", f"show {len(folded):,} more")
        parts.append(element("details", summary, _drawn(replace(shown, rows=folded), {})))
    return section("Rows against each other", *parts, note=note)


def _notes(comparison: Comparison) -> Html:
    return section("To know", _list(comparison.notes)) if comparison.notes else Html()


def _missing(comparison: Comparison) -> Html:
    if not comparison.missing:
        return Html()
    lines = [f"{run.name}: {run.status}" + (f", {run.error}" if run.error else "") for run in comparison.missing]
    return section("Jobs that are not counted", listing(lines))


def _intervals(comparison: Comparison) -> Html:
    lines = [element("p", line) for line in wording.interval_note(comparison)]
    return section("How the intervals are made", *lines)


def _runs(comparison: Comparison) -> Html:
    """Every run by its folder's name."""
    lines = [
        f"{run.folder.path.name}: {row.name}, seed {run.seed}, measured"
        for row in comparison.rows
        if not row.is_base
        for run in row.runs
    ]
    lines += [f"{run.name}: {run.status}" for run in comparison.missing]
    return section("Runs", listing(lines)) if lines else Html()


def _list(lines: Sequence[str]) -> Html:
    return element("ul", *(element("li", line) for line in lines), class_="notes")


def _drawn(shown: Table, looks: dict[str, Kind]) -> Html:
    """A table whose rows carry the signs of the charts."""
    rows: list[list[Content]] = []
    for name, *cells in shown.rows:
        sign = key(looks[name.value]) if name.value in looks else None
        named = element("span", sign, element("span", _cell(name)), class_="named")
        rows.append([named, *map(_cell, cells)])
    drawn = table(shown.title, shown.columns, rows)
    return element("div", drawn, class_="compared")


def _cell(cell: Cell) -> Html:
    value: Content = element("b", cell.value, class_=f"claim {cell.kind}") if cell.kind else cell.value
    return joined(value, element("small", cell.detail) if cell.detail else None)
