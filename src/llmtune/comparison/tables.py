"""The tables of a comparison, cell by cell, and how they look in a terminal."""

import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmtune.comparison import wording
from llmtune.comparison.outcome import Comparison, Pair, Row
from llmtune.comparison.rows import as_text
from llmtune.logs import print_table, say

MOST_ROWS_WITH_PAIRS = 4
"""Rows up to which the terminal and a description show every pair of them."""
_WIDTH = 98
_NO_BREAK = "\N{NO-BREAK SPACE}"
_PERPLEXITY = "perplexity"
_NAME_WIDTH = 21
_HEADING_WIDTH = 10
_DETAIL_WIDTH = 20


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table."""

    value: str
    detail: str = ""
    """Said more quietly, such as an interval."""
    kind: str = ""
    """`good`, `problem` or empty: what it means for a choice."""

    @property
    def line(self) -> str:
        """All of it in a line."""
        return f"{self.value} {self.detail}".strip()


@dataclass(frozen=True)
class Table:
    """Rows of cells beneath headings; the first cell names its row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


_Column = tuple[str, list[Cell]]


def quality_table(comparison: Comparison) -> Table:
    """How good each row is: a line a row, the base model too; columns that no row fills are left out."""
    rows = comparison.rows
    columns: list[_Column] = [
        (wording.METRICS[comparison.metric], [_loss_cell(row) for row in rows]),
    ]
    is_ranked = not comparison.unfair
    if is_ranked and any(row.quality is not None for row in rows):
        columns.append(("quality", [_quality_cell(row, comparison.margin) for row in rows]))
    if is_ranked and any(row.standing is not None for row in rows):
        columns.append(("standing", [_standing_cell(row, comparison) for row in rows]))
    if comparison.metric == "loss":  # under several tokenizers a perplexity per token compares nothing
        columns.append((_PERPLEXITY, [_perplexity_cell(row) for row in rows]))
    if any(row.forgetting is not None for row in rows):
        columns.append(("forgotten", [_forgotten_cell(row) for row in rows]))
    settings = Counter(_method(row) for row in rows)
    names = [Cell(row.name, _detail(row, is_alone=settings[_method(row)] == 1)) for row in rows]
    return _table(f"quality on {wording.test_set(comparison)}", ("", names), columns)


def cost_table(comparison: Comparison) -> Table:
    """What the training of each row took, the mean over its runs; base models are left out, and what isn't known."""
    rows = [row for row in comparison.rows if not row.is_base]
    columns: list[_Column] = [
        ("trainable parameters", [_trainable_cell(row) for row in rows]),
        ("peak memory", [Cell(wording.gib(row.cost.peak_memory_gib)) for row in rows]),
        ("tokens/s", [Cell(wording.count(_whole(row.cost.tokens_per_second))) for row in rows]),
        ("training time", [Cell(wording.seconds(row.cost.train_seconds)) for row in rows]),
    ]
    title = "cost of training, mean over seeds"
    if comparison.price_per_hour is not None:
        columns.append(("price", [Cell(wording.price(row.price)) for row in rows]))
        title += f", {comparison.price_per_hour:g} an hour"
    return _table(title, ("", [Cell(row.name) for row in rows]), columns)


def pair_table(comparison: Comparison) -> Table:
    """Every two rows against each other; without rows where nothing may be ranked, or each pair has one seed."""
    pairs = comparison.pairs if _has_claims(comparison) else ()
    names = [Cell(pair.first, f"against {pair.second}") for pair in pairs]
    columns: list[_Column] = [
        (f"difference in {wording.METRICS[comparison.metric]}", [_difference_cell(pair) for pair in pairs]),
        ("p after Holm", [_p_cell(pair) for pair in pairs]),
        ("better", [Cell(wording.better(pair), kind="good" if pair.lower else "") for pair in pairs]),
    ]
    return _table("rows against each other", ("", names), columns)


def shows_pairs(comparison: Comparison) -> bool:
    """Whether pairs tell what the quality table doesn't: few rows, or none of them full fine-tuning."""
    tuned = [row for row in comparison.rows if not row.is_base]
    has_full = any(row.standing == "reference" for row in tuned)
    return _has_claims(comparison) and (not has_full or len(tuned) <= MOST_ROWS_WITH_PAIRS)


def _has_claims(comparison: Comparison) -> bool:
    """Whether the pairs bear a claim or its lack: on one seed nothing is claimed of any."""
    return not comparison.unfair and any(pair.difference.basis != "examples" for pair in comparison.pairs)


def show_comparison(comparison: Comparison) -> None:
    """Show the tables, the verdict and what should be known, at most 100 columns wide."""
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 0)).columns)
    tables = [quality_table(comparison), cost_table(comparison)]
    if shows_pairs(comparison):
        tables.append(pair_table(comparison))
    for table in tables:
        if table.rows:
            _print(table, f"{comparison.title}: {table.title}", width)
    for line in _lines(comparison):
        kept = line.replace(" %", f"{_NO_BREAK}%")
        say(textwrap.fill(kept, width, break_long_words=False, break_on_hyphens=False).replace(_NO_BREAK, " "))


def _lines(comparison: Comparison) -> Iterator[str]:
    """What is said beneath the tables."""
    yield " ".join(wording.interval_note(comparison))
    if note := wording.quality_note(comparison):
        yield note
    for reason in wording.untold_reasons(comparison):
        yield f"not ranked: {reason}"
    if comparison.verdict:
        yield f"verdict: {comparison.verdict}"
    for note in comparison.notes:
        yield f"note: {note}"
    for run in comparison.missing:
        yield f"not counted: {run.name} {run.status}" + (f": {run.error}" if run.error else "")


def _print(table: Table, title: str, width: int) -> None:
    """Show a table; one that is too wide goes without perplexity, which says what the loss says."""
    rows = [[_folded(row[0]), *(_with_detail(cell) for cell in row[1:])] for row in table.rows]
    lines = [[_heading(column) for column in table.columns], *rows]
    if _PERPLEXITY in table.columns and _width(lines) > width:
        place = table.columns.index(_PERPLEXITY)
        lines = [[*line[:place], *line[place + 1 :]] for line in lines]
    print_table(title, lines[0], lines[1:])


def _width(lines: Sequence[Sequence[str]]) -> int:
    """Columns of a terminal that a table takes, its rules and spaces too."""
    cells = [
        max((len(part) for cell in column for part in cell.splitlines()), default=0)
        for column in zip(*lines, strict=True)
    ]
    return sum(cells) + 3 * len(cells) + 1


def _folded(name: Cell) -> str:
    """A name on lines of its own between words, then its detail."""
    lines = [
        line for text in (name.value, name.detail) for line in textwrap.wrap(text, _NAME_WIDTH, break_on_hyphens=False)
    ]
    return "\n".join(lines)


def _with_detail(cell: Cell) -> str:
    detail = textwrap.wrap(cell.detail, _DETAIL_WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join([cell.value, *detail]).strip()


def _heading(column: str) -> str:
    return "\n".join(textwrap.wrap(column, _HEADING_WIDTH, break_long_words=False))


def _table(title: str, names: _Column, columns: Sequence[_Column]) -> Table:
    filled = [
        (head, cells)
        for head, cells in columns
        if not cells or any(cell.line not in ("", wording.UNKNOWN) for cell in cells)
    ]
    rows = list(zip(names[1], *(cells for _, cells in filled), strict=True)) if filled else []
    return Table(title, [names[0], *(head for head, _ in filled)], rows)


def _method(row: Row) -> tuple[str, str | None]:
    """What the settings of one method have in common that are chosen among."""
    return as_text(row.group), row.method


def _detail(row: Row, *, is_alone: bool) -> str:
    """What stands beneath a row's name: its seeds, and whether it was chosen among its method's settings."""
    chosen = "chosen on validation" if row.is_chosen and not is_alone else ""
    return "; ".join(filter(None, [wording.basis(row.loss, len(row.seeds)), chosen]))


def _loss_cell(row: Row) -> Cell:
    if math.isnan(row.loss.value):
        return Cell(wording.NOT_A_NUMBER)
    return Cell(wording.loss(row.loss.value), wording.half_width(row.loss))


def _perplexity_cell(row: Row) -> Cell:
    return Cell(wording.perplexity(row.perplexity.value), wording.limits(row.perplexity, wording.perplexity))


def _quality_cell(row: Row, margin: float) -> Cell:
    """What of full's gain it reaches; what it is by definition has no interval."""
    if row.is_base:
        return Cell("0 %")
    if row.standing == "reference":
        return Cell("100 %")
    if row.quality is None:
        return Cell(wording.UNKNOWN)
    value, ends = wording.quality(row.quality, margin)
    return Cell(value, ends)


def _forgotten_cell(row: Row) -> Cell:
    if row.forgetting is None:
        return Cell(wording.UNKNOWN)
    return Cell(wording.loss(row.forgetting.value, signed=True), wording.half_width(row.forgetting))


def _standing_cell(row: Row, comparison: Comparison) -> Cell:
    """How it stands to full; what would decide it is the verdict's to say."""
    if row.standing is None:
        return Cell("")
    kinds = {"good enough": "good", "worse": "problem"}
    weak = wording.weakness(row.to_full) if row.to_full is not None else ""
    return Cell(wording.standing(row, comparison), weak, kinds.get(row.standing, ""))


def _trainable_cell(row: Row) -> Cell:
    cost = row.cost
    if cost.num_trainable is None or not cost.num_parameters:
        return Cell(wording.count(cost.num_trainable))
    return Cell(wording.count(cost.num_trainable), f"{100 * cost.num_trainable / cost.num_parameters:.3g} %")


def _difference_cell(pair: Pair) -> Cell:
    detail = ", ".join(filter(None, [wording.half_width(pair.difference), wording.weakness(pair.difference)]))
    return Cell(wording.loss(pair.difference.value, signed=True), detail)


def _p_cell(pair: Pair) -> Cell:
    """On one seed the examples alone give a p, which says nothing of what another seed would show."""
    return Cell(wording.p_value(None if pair.difference.basis == "examples" else pair.adjusted_p))


def _whole(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else round(value)
