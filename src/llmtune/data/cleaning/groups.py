"""Columns over groups of rows; a group is named by its lowest row."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int32 | np.int64]
"""Numbers of rows, as small as they can be: there are several for each of millions of rows."""
Flags = NDArray[np.bool_]


def every_row(size: int) -> Indices:
    """The numbers of so many rows."""
    return np.arange(size, dtype=np.int32 if size <= np.iinfo(np.int32).max else np.int64)


def first_equal(*columns: NDArray[Any]) -> Indices:
    """[N] The first row that is equal to each row in all columns."""
    firsts = every_row(len(columns[0]))
    order = np.lexsort(columns).astype(firsts.dtype)
    is_new = new_in(order, *columns)
    firsts[order] = order[is_new][np.cumsum(is_new, dtype=firsts.dtype) - 1]
    return firsts


def new_in(order: Indices, *columns: NDArray[Any]) -> Flags:
    """[N] Whether each row differs from the one before it in an order."""
    is_new = np.zeros(len(order), np.bool_)
    is_new[:1] = True
    for column in columns:
        ordered = column[order]
        is_new[1:] |= ordered[1:] != ordered[:-1]
    return is_new


def any_of(groups: Indices, flags: Flags) -> Flags:
    """[N] Whether any row of each row's group is flagged."""
    found = np.zeros(len(groups), np.bool_)
    found[groups[flags]] = True
    return found[groups]


def lowest_of(groups: Indices, values: NDArray[Any]) -> NDArray[Any]:
    """[N] The lowest value in each row's group."""
    lowest = values.copy()
    np.minimum.at(lowest, groups, values)
    return lowest[groups]


def best_of(groups: Indices, among: Flags, rank: NDArray[Any]) -> Flags:
    """[N] Of each group the one row of lowest rank, and of several the first; only rows `among` count."""
    ranked = np.where(among, rank, np.iinfo(rank.dtype).max)
    rows = np.flatnonzero(among & (ranked == lowest_of(groups, ranked)))[::-1]
    firsts = np.zeros(len(groups), groups.dtype)
    firsts[groups[rows]] = rows  # of several the last that is written stays: the first row
    best = np.zeros(len(groups), np.bool_)
    best[firsts[groups[rows]]] = True
    return best


def join(roots: Indices, rows: Indices, others: Indices) -> None:
    """Join each row's cluster with the other's, in place: every row then leads to the lowest of its cluster."""
    while len(rows):
        left, right = find(roots, rows), find(roots, others)
        apart = left != right
        left, right = left[apart], right[apart]
        rows, others = rows[apart], others[apart]
        np.minimum.at(roots, np.maximum(left, right), np.minimum(left, right))


def find(roots: Indices, rows: Indices) -> Indices:
    """The lowest of each row's cluster."""
    found = rows
    while True:
        above = roots[found]
        top = roots[above]
        if np.array_equal(above, top):
            roots[rows] = top
            return top
        roots[found] = top  # halves the way for the next
        found = top
