"""The answer in a few sentences that a person can act on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from llmtune.comparison.group_verdict import find_pair, opening, sentences_on
from llmtune.comparison.naming import row_names
from llmtune.comparison.outcome import Comparison, MissingRun, Pair, Row
from llmtune.comparison.rows import as_text
from llmtune.comparison.wording import MOST_NAMES, UNITS, WEAK, in_brackets, in_sentence, listed, weakness
from llmtune.pages.numbers import counted

_SMALL_WORDS = ("It ", "No ", "On ", "Take ", "The ", "What ")
"""How a sentence begins that begins with no name."""
_NOTHING_ABOUT_LUCK = "which says nothing about luck: no claim"
_FATES = {"FAILED": "failed", "KILLED": "{} killed", "NOT STARTED": "{} not started"}
_UNMEASURED = "{} not measured"


def verdict(comparison: Comparison) -> str:
    """What the comparison says, or why it says nothing.

    Args:
        comparison: all of it but the verdict.
    """
    return " ".join([*_found(comparison), *_not_counted(comparison.missing)])


def _found(comparison: Comparison) -> Iterator[str]:
    """The answer, before what isn't counted in it."""
    trained = [row for row in comparison.rows if not row.is_base]
    if comparison.unfair:
        yield f"Nothing is ranked: {_reasons(comparison.unfair)}"
        return
    if not trained:
        yield "There is nothing to compare: no trained run has measured its weights."
        return
    groups = _groups(trained)
    said = list(_across(groups, comparison))
    if not said or any(len(rows) > 1 for rows in groups):
        said = [*_by_group(groups, comparison), *said]
    yield from said
    yield from _two_seeds(trained, said)
    yield from _one_seed(trained)
    yield from _one_common_seed(trained, comparison.pairs)


def _not_counted(missing: Sequence[MissingRun]) -> Iterator[str]:
    """The jobs that are missing in all of it, by what became of them."""
    by_fate: dict[str, list[str]] = {}
    for run in missing:
        by_fate.setdefault(_FATES.get(run.status, _UNMEASURED), []).append(run.name)
    found = [
        f"{counted(len(names), 'job')} that {fate.format('was' if len(names) == 1 else 'were')} "
        f"({listed(names, MOST_NAMES)})"
        for fate, names in by_fate.items()
    ]
    if found:
        yield f"Not counted: {listed(found)}."


def _by_group(groups: Sequence[Sequence[Row]], comparison: Comparison) -> Iterator[str]:
    if len(groups) == 1:
        yield from _joined(opening(groups[0]), sentences_on(groups[0], comparison))
        return
    for name, rows in zip(row_names([rows[0].group for rows in groups], ""), groups, strict=True):
        beginning = ", ".join(filter(None, [f"for {name}", opening(rows)]))
        yield from _joined(beginning, sentences_on(*_named_within(rows, comparison)))


def _named_within(rows: Sequence[Row], comparison: Comparison) -> tuple[list[Row], Comparison]:
    """The rows without what their whole group has in their names, and the comparison of these alone."""
    names = row_names([_rest(row) for row in rows], str(rows[0].method))
    short = dict(zip((row.name for row in rows), names, strict=True))
    pairs = [
        replace(pair, first=short[pair.first], second=short[pair.second], lower=pair.lower and short[pair.lower])
        for pair in comparison.pairs
        if pair.first in short and pair.second in short
    ]
    named = [replace(row, name=short[row.name]) for row in rows]
    return named, replace(comparison, rows=named, pairs=pairs)


def _rest(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.values.items() if key not in row.group}


def _two_seeds(trained: Sequence[Row], said: Sequence[str]) -> Iterator[str]:
    """That rows of two seeds are weak, unless it stands beside what is said of them."""
    names = [row.name for row in trained if row.loss.basis == "few seeds"]
    if not names or any(WEAK in sentence for sentence in said):
        return
    if len(names) == len(trained):
        yield "Two seeds are weak; run seed=1,2,3."
    else:
        have = "has two seeds, which is" if len(names) == 1 else "have two seeds, which are"
        yield f"{listed(names, MOST_NAMES)} {have} weak; run seed=1,2,3."


def _one_seed(trained: Sequence[Row]) -> Iterator[str]:
    names = [row.name for row in trained if row.loss.basis == "examples"]
    if len(names) == len(trained):
        yield "One seed says nothing about luck: no claim; run seed=1,2,3."
    elif names:
        have = "has" if len(names) == 1 else "have"
        yield f"{listed(names, MOST_NAMES)} {have} one seed, {_NOTHING_ABOUT_LUCK}; run seed=1,2,3."


def _one_common_seed(trained: Sequence[Row], pairs: Sequence[Pair]) -> Iterator[str]:
    """Of rows with several seeds each, those that share one only."""
    several = {row.name: row for row in trained if row.loss.basis != "examples"}
    found = [
        (pair.first, pair.second)
        for pair in pairs
        if pair.difference.basis == "examples" and {pair.first, pair.second} <= several.keys()
    ]
    if not found:
        return
    names = list(dict.fromkeys(name for pair in found for name in pair))
    seeds = sorted({seed for name in names for seed in several[name].seeds})
    who = f"{'' if len(found) == 1 else 'Some of '}{listed(names, MOST_NAMES)} have"
    yield f"{who} one seed in common, {_NOTHING_ABOUT_LUCK}; run seed={','.join(map(str, seeds))}."


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
    one_seed = all(pair.difference.basis == "examples" for pair in pairs)
    found = "; ".join(_compared(pair, comparison, is_on_one_seed=one_seed) for pair in pairs)
    return f"On these examples and this seed {found}" if one_seed else found


def _compared(pair: Pair, comparison: Comparison, *, is_on_one_seed: bool) -> str:
    is_lower = pair.difference.value < 0
    lower, higher = (pair.first, pair.second) if is_lower else (pair.second, pair.first)
    size, unit = pair.difference.scaled(-1 if is_lower else 1), UNITS[comparison.metric]
    if not math.isfinite(size.value):
        return f"{pair.first} and {pair.second} can't be compared, as a loss isn't finite"
    if pair.lower is None and size.basis != "examples":
        weak = f"; {weakness(size)}" if weakness(size) else ""
        return f"{lower} and {higher} can't be told apart ({in_brackets(size, unit)}{weak})"
    weak = f", {weakness(size)}" if weakness(size) and not is_on_one_seed else ""
    return f"{lower} is lower than {higher} by {in_sentence(size, unit)}{weak}"
