"""The answer in a few sentences that a person can act on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from llmtune.comparison.fairness import listed
from llmtune.comparison.figures import UNIT, in_brackets, measured
from llmtune.comparison.group_verdict import WEAK, find_pair, opening, sentences_on
from llmtune.comparison.naming import row_names
from llmtune.comparison.outcome import Comparison, Pair, Row
from llmtune.comparison.rows import as_text

_SMALL_WORDS = ("It ", "No ", "On ", "The ", "What ")
"""How a sentence begins that begins with no name."""


def verdict(comparison: Comparison) -> str:
    """What the comparison says, or why it says nothing.

    Args:
        comparison: all of it but the verdict.
    """
    trained = [row for row in comparison.rows if not row.is_base]
    if comparison.unfair:
        return f"Nothing is ranked: {_reasons(comparison.unfair)}"
    if not trained:
        return "There is nothing to compare: no trained run has measured its weights."
    groups = _groups(trained)
    across = list(_across(groups, comparison))
    parts = across if across and all(len(rows) == 1 for rows in groups) else [*_by_group(groups, comparison), *across]
    return " ".join([*parts, *_one_seed(trained)])


def _by_group(groups: Sequence[Sequence[Row]], comparison: Comparison) -> Iterator[str]:
    if len(groups) == 1:
        yield from _joined(opening(groups[0]), sentences_on(groups[0], comparison))
        return
    for name, rows in zip(row_names([rows[0].group for rows in groups], ""), groups, strict=True):
        beginning = ", ".join(filter(None, [f"for {name}", opening(rows)]))
        yield from _joined(beginning, sentences_on(*_named_within(rows, comparison)))


def _named_within(rows: Sequence[Row], comparison: Comparison) -> tuple[list[Row], Comparison]:
    """The rows without what their whole group has in their names, and the comparison with their pairs alone."""
    names = row_names([_rest(row) for row in rows], str(rows[0].method))
    short = dict(zip((row.name for row in rows), names, strict=True))
    pairs = [
        replace(pair, first=short[pair.first], second=short[pair.second], lower=pair.lower and short[pair.lower])
        for pair in comparison.pairs
        if pair.first in short and pair.second in short
    ]
    return [replace(row, name=short[row.name]) for row in rows], replace(comparison, pairs=pairs)


def _rest(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.values.items() if key not in row.group}


def _one_seed(trained: Sequence[Row]) -> Iterator[str]:
    names = [row.name for row in trained if row.loss.basis == "examples"]
    if len(names) == len(trained):
        yield "One seed says nothing about luck: no claim; run seed=1,2,3."
    elif names:
        have = "has" if len(names) == 1 else "have"
        yield f"{listed(names)} {have} one seed, which says nothing about luck: no claim; run seed=1,2,3."


def _reasons(unfair: Sequence[str]) -> str:
    return " ".join([_going_on(unfair[0]), *unfair[1:]])


def _joined(beginning: str, sentences: Sequence[str]) -> list[str]:
    """The sentences, the first of them with the words before it."""
    if not beginning:
        return list(sentences)
    return [f"{_capital(beginning)}, {_going_on(sentences[0])}", *sentences[1:]]


def _going_on(sentence: str) -> str:
    """The sentence as the rest of another."""
    return sentence[0].lower() + sentence[1:] if sentence.startswith(_SMALL_WORDS) else sentence


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _groups(trained: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in trained:
        groups.setdefault(as_text(row.group), []).append(row)
    return list(groups.values())


def _across(groups: Sequence[Sequence[Row]], comparison: Comparison) -> Iterator[str]:
    """What the models or sizes of the data make of it: neighbours of a series beside each other."""
    series: dict[str, list[Row]] = {}
    for row in (row for rows in groups for row in rows):
        series.setdefault(as_text(_rest(row)), []).append(row)
    for rows in (rows for rows in series.values() if len(rows) > 1):
        ordered = rows if _is_by_size(rows) else sorted(rows, key=lambda row: -row.loss.value)
        pairs = [find_pair(*two, comparison.pairs) for two in pairwise(ordered)]
        known = [pair for pair in pairs if pair is not None]
        if known:
            yield f"{_listed_pairs(known, comparison)}."


def _is_by_size(rows: Sequence[Row]) -> bool:
    """Whether what differs is a number, so that the rows stand by its size."""
    values = [value for row in rows for value in row.group.values()]
    return all(isinstance(value, int | float) or value is None for value in values)


def _listed_pairs(pairs: Sequence[Pair], comparison: Comparison) -> str:
    found = "; ".join(_compared(pair, comparison) for pair in pairs)
    one_seed = all(pair.difference.basis == "examples" for pair in pairs)
    return f"On these examples and this seed {found}" if one_seed else found


def _compared(pair: Pair, comparison: Comparison) -> str:
    is_lower = pair.difference.value < 0
    lower, higher = (pair.first, pair.second) if is_lower else (pair.second, pair.first)
    size, unit = pair.difference.scaled(-1 if is_lower else 1), UNIT[comparison.metric]
    if not math.isfinite(size.value):
        return f"{pair.first} and {pair.second} can't be compared, as a loss isn't finite"
    if pair.lower is None and size.basis != "examples":
        return f"{lower} and {higher} can't be told apart ({in_brackets(size, unit)})"
    weak = f" ({WEAK})" if size.basis == "few seeds" else ""
    return f"{lower} is lower than {higher} by {measured(size)} {unit}{weak}"
