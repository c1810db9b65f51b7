"""Columns over groups of rows; a group is named by its lowest row."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


def first_equal(*columns: NDArray[Any]) -> Indices:
    """[N] The first row that is equal to each row in all columns."""
    order = np.lexsort(columns)
    is_new = np.zeros(len(order), np.bool_)
    is_new[:1] = True
    for column in columns:
        ordered = column[order]
        is_new[1:] |= ordered[1:] != ordered[:-1]
    firsts = np.empty(len(order), np.int64)
    firsts[order] = order[is_new][np.cumsum(is_new) - 1]
    return firsts


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
    size = len(groups)
    keys = np.where(among, rank.astype(np.int64) * size + np.arange(size), np.iinfo(np.int64).max)
    return among & (keys == lowest_of(groups, keys))
