"""Which rows are alike, at each level of likeness."""

from dataclasses import dataclass

import numpy as np

from llmtune.data.cleaning.groups import Flags, Indices, every_row, find, first_equal, join
from llmtune.data.cleaning.near_duplicates import NearClusters, NearPair
from llmtune.data.deciding.decisions import ScanColumns

LARGEST_SHARE = 0.25
"""Of the training rows: a near cluster that holds more of them comes of what they have in common, such as a prompt."""
FEWEST_APART = 20
"""Rows from which that can be said."""


@dataclass(frozen=True)
class Likeness:
    """Groups of like rows, each named by its lowest row."""

    ids: dict[str, Indices]
    """[N] By level; a group of one level lies within one of the next."""
    pairs: list[NearPair]
    """The first pairs of near-duplicates."""
    num_apart: int
    """Training rows of near clusters that were taken apart, since they hold too large a share of the data."""


def find_likeness(columns: ScanColumns, near: NearClusters | None, *, takes_apart: bool) -> Likeness:
    """Which rows are alike.

    Args:
        columns: the rows.
        near: clusters of near-duplicates over the same rows; None where they weren't looked for.
        takes_apart: whether of a near cluster that holds too large a share of the data only what is equal or equal but
            for case, white space and punctuation stays together.
    """
    exact, normalised = first_equal(columns.exact[:, 0], columns.exact[:, 1]), first_equal(columns.normalised)
    every = every_row(len(exact))
    roots = normalised.copy()
    join(roots, every, exact)
    same = find(roots, every) if near is None or takes_apart else None
    if near is not None:
        join(roots, every, near.ids)
    clusters = find(roots, every)
    num_apart = 0
    if near is not None and same is not None:
        is_apart = _too_large(clusters, same, ~columns.is_eval)
        num_apart = int(np.count_nonzero(is_apart & ~columns.is_eval))
        clusters = np.where(is_apart, same, clusters)
    pairs = [] if near is None else [pair for pair in near.listed if clusters[pair.first] == clusters[pair.other]]
    return Likeness({"exact": exact, "normalised": normalised, "near": clusters}, pairs, num_apart)


def clusters_of(columns: ScanColumns, near: Indices) -> Indices:
    """[N] What each row belongs to, named by one of its rows: rows of one cluster can't be taken as independent.

    A row's named group, where it has one; else the rows of nearly the same words, with the group of the first of them.

    Args:
        columns: the rows.
        near: [N] groups of near-duplicates, each named by its lowest row.
    """
    is_alone = columns.group == 0
    own = np.where(is_alone, every_row(len(near)), first_equal(columns.group))
    return np.where(is_alone, own[near], own)


def _too_large(clusters: Indices, same: Indices, is_train: Flags) -> Flags:
    """[N] Whether each row's cluster holds too large a share of the training rows, the same ones counted once."""
    is_first = np.zeros(len(same), np.bool_)
    is_first[same[is_train]] = True
    sizes = np.bincount(clusters[is_first], minlength=len(clusters))
    return ((sizes >= FEWEST_APART) & (sizes > LARGEST_SHARE * np.count_nonzero(is_first)))[clusters]
