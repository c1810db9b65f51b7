"""A comparison in Markdown: a file of its own, and a description that MLflow holds."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmtune.comparison import wording
from llmtune.comparison.outcome import Comparison, Row
from llmtune.comparison.tables import Cell, Table, cost_table, pair_table, quality_table
from llmtune.pages.elements import visible
from llmtune.pages.numbers import counted

DESCRIPTION_LENGTH = 8000
"""Characters of a description at most: what MLflow's stores and its page hold of a tag."""
_WHOLE = "The whole of it: comparison.html, comparison.json."
_MOST_LINES = 12
_LONGEST_LINE = 600
_SPECIAL = re.compile(r"([\\`*\[\]|~#]|(?<![^\W_])_|_(?![^\W_]))")


def markdown(comparison: Comparison) -> str:
    """The verdict, the tables, and what should be known, in Markdown, under the comparison's title."""
    return _joined([f"## {_escaped(comparison.title)}", *_parts(comparison, with_pairs=True)])


def description(comparison: Comparison) -> str:
    """The same without title in less than 8000 characters, each line that is left out counted.

    First the pairs go, then long lists and lines are cut, then rows, from the last that doesn't stand for its method.
    """
    whole = _joined(_parts(comparison, with_pairs=True))
    if len(whole) < DESCRIPTION_LENGTH:
        return whole
    num_pairs = len(pair_table(comparison).rows)
    left_out = [f"{counted(num_pairs, 'pair')} of rows"] if num_pairs else []
    short = _joined([*_parts(comparison, with_pairs=False), _left_out(left_out)])
    if len(short) < DESCRIPTION_LENGTH:
        return short
    cut = replace(
        comparison,
        verdict=_cut(comparison.verdict, 2 * _LONGEST_LINE),
        rows=[replace(row, name=_cut(row.name, 200)) for row in comparison.rows],
        **{name: _first([_cut(x, _LONGEST_LINE) for x in getattr(comparison, name)]) for name in ("unfair", "notes")},
        missing=[
            replace(run, name=_cut(run.name, 200), error=_cut(run.error or "", 200))
            for run in comparison.missing[:_MOST_LINES]
        ],
    )
    if hidden := len(comparison.missing) - len(cut.missing):
        left_out.append(counted(hidden, "run that isn't counted", "runs that aren't counted"))
    return _fitting(cut, left_out)


def _fitting(comparison: Comparison, left_out: Sequence[str]) -> str:
    """With as many rows as there is room for."""
    order = sorted(range(len(comparison.rows)), key=lambda place: _rank(comparison.rows[place], place))

    def with_rows(size: int) -> str:
        kept = [comparison.rows[place] for place in sorted(order[:size])]
        hidden = [counted(len(order) - size, "row")] if size < len(order) else []
        parts = _parts(replace(comparison, rows=kept), with_pairs=False)
        return _joined([*parts, _left_out([*hidden, *left_out])])

    too_many = bisect_left(range(len(order) + 1), True, key=lambda size: len(with_rows(size)) >= DESCRIPTION_LENGTH)
    if too_many:
        return with_rows(too_many - 1)
    # Even without rows it is too long: whole lines from the top, as far as they go.
    ending = f"\n\n… cut. {_WHOLE}\n"
    return with_rows(0)[: DESCRIPTION_LENGTH - len(ending) - 1].rpartition("\n")[0] + ending


def _rank(row: Row, place: int) -> tuple[int, int]:
    """What is kept first: base models, then rows that stand for their method, then the best."""
    return (0 if row.is_base else 1 if row.is_chosen else 2, place)


def _parts(comparison: Comparison, *, with_pairs: bool) -> Iterator[str]:
    if reasons := wording.untold_reasons(comparison):
        yield "**Not ranked:**\n\n" + _list(reasons)
    if comparison.verdict:
        yield f"**{_escaped(comparison.verdict)}**"
    tables = [quality_table(comparison), cost_table(comparison), *([pair_table(comparison)] if with_pairs else [])]
    yield from (_table(table) for table in tables if table.rows)
    yield _escaped(" ".join([*wording.interval_note(comparison), wording.quality_note(comparison) or ""]).strip())
    if comparison.notes:
        yield "### To know\n\n" + _list(comparison.notes)
    if comparison.missing:
        lines = [f"{run.name}: {run.status}" + (f", {run.error}" if run.error else "") for run in comparison.missing]
        yield "### Not counted\n\n" + _list(lines)


def _table(table: Table) -> str:
    columns = [_escaped(column) for column in table.columns]
    lines = [columns, [":--", *["--:"] * (len(columns) - 1)], *([_cell(cell) for cell in row] for row in table.rows)]
    heading = f"### {_escaped(table.title[:1].upper() + table.title[1:])}"
    return f"{heading}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(cell: Cell) -> str:
    value = _escaped(cell.value)
    if cell.kind == "good":
        value = f"**{value}**"
    return f"{value} ({_escaped(cell.detail)})" if cell.detail and cell.value else value


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines)


def _left_out(what: Sequence[str]) -> str:
    return f"Left out here: {', '.join(what)}. {_WHOLE}" if what else _WHOLE


def _joined(parts: Iterator[str] | Sequence[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """The text on one line, so that none of it is read as Markdown or HTML."""
    line = visible(" ".join(text.split()))
    return _SPECIAL.sub(r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _first(lines: Sequence[str]) -> list[str]:
    """The first lines, and how many more there are."""
    rest = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], *([f"and {rest:,} more"] if rest > 0 else [])]
