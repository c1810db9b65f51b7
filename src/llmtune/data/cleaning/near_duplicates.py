"""Clusters of records of nearly the same words, by locality-sensitive hashing of their MinHash signatures."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmtune.data.cleaning.fingerprints import NUM_PERMUTATIONS
from llmtune.data.cleaning.groups import Indices, every_row, find, join, new_in

SURE_ABOVE = 0.05
"""At this much above the threshold at least 95 of 100 pairs are found."""

_MOST_MISSED_BY_BANDS = 0.01
_MOST_MISSED_BY_AGREEMENT = 0.035
_ROWS_AT_A_TIME = 1 << 15  # 8 MiB of signatures
_NEIGHBOURS = 15
_ROW_BYTES = 4 * NUM_PERMUTATIONS


@dataclass(frozen=True)
class NearPair:
    """Two rows of nearly the same words."""

    first: int
    other: int
    likeness: float
    """Estimated share of common runs of words (Jaccard)."""


@dataclass(frozen=True)
class NearClusters:
    """Which rows are of nearly the same words, directly or by way of others."""

    ids: Indices
    """[N] The lowest row of each row's cluster."""
    listed: list[NearPair]
    """The first pairs that were joined, in row order; rows of equal signatures are not listed."""


@dataclass(frozen=True)
class Bands:
    """How signatures are cut into bands, and what two need in common."""

    num_bands: int
    band_size: int
    min_equal: int
    """Equal values of 64 from which a pair counts."""


def bands_for(threshold: float) -> Bands:
    """The bands for a threshold of likeness.

    A pair is compared where all values of one band are equal, which has the chance 1 - (1 - s^size)^bands at a likeness
    s (https://infolab.stanford.edu/~ullman/mmds/ch3.pdf, 3.4.2), and counts where enough of the 64 values are equal.
    The bands are as large, and the number of equal values as high, as leaves 95 of 100 pairs at threshold + 0.05.
    """
    likeness = min(1.0, threshold + SURE_ABOVE)
    size = next(
        size
        for size in range(16, 0, -1)
        if size == 1 or (1 - likeness**size) ** (NUM_PERMUTATIONS // size) <= _MOST_MISSED_BY_BANDS
    )
    missed, min_equal = 0.0, 0
    while min_equal < NUM_PERMUTATIONS:
        missed += (
            math.comb(NUM_PERMUTATIONS, min_equal)
            * likeness**min_equal
            * (1 - likeness) ** (NUM_PERMUTATIONS - min_equal)
        )
        if missed > _MOST_MISSED_BY_AGREEMENT:
            break
        min_equal += 1
    return Bands(NUM_PERMUTATIONS // size, size, min_equal)


def cluster_near(signatures: Path, threshold: float, num_listed: int = 100) -> NearClusters:
    """Cluster rows whose signatures are alike.

    Memory holds a few numbers a row; signatures are read a slice at a time. Clusters don't depend on the rows' order.
    Where more than 16 different signatures share a band, each is compared with 15 of them, those that share a second
    band first.

    Args:
        signatures: file of uint32, 64 a row.
        threshold: likeness from which rows count as near-duplicates.
        num_listed: most pairs that are listed.
    """
    file = _SignatureFile(signatures)
    bands = bands_for(threshold)
    whole = file.band_hashes(0, NUM_PERMUTATIONS)
    firsts, which = _different(whole)
    del whole
    search = _Search(file, bands, firsts)
    before = search.hashes(bands.num_bands - 1)
    for band in range(bands.num_bands):
        hashes = search.hashes(band)
        search.compare_in_buckets(hashes, before)
        before = hashes
    roots = find(search.roots, every_row(len(firsts)))
    lowest = np.full(len(firsts), len(which), firsts.dtype)
    np.minimum.at(lowest, roots, firsts)
    pairs = sorted(search.pairs)
    listed = [NearPair(first, other, equal / NUM_PERMUTATIONS) for first, other, equal in pairs[:num_listed]]
    return NearClusters(lowest[roots][which], listed)


class _Search:
    """Joins different signatures, each named by its place among all in the order of their hashes."""

    def __init__(self, file: "_SignatureFile", bands: Bands, firsts: Indices) -> None:
        self._file = file
        self._bands = bands
        self._firsts = firsts
        self.roots = every_row(len(firsts))
        self.pairs: list[tuple[int, int, int]] = []
        """First row, other row and equal values of pairs that were joined."""

    def hashes(self, band: int) -> NDArray[np.uint64]:
        first = band * self._bands.band_size
        return self._file.band_hashes(first, first + self._bands.band_size)[self._firsts]

    def compare_in_buckets(self, hashes: NDArray[np.uint64], before: NDArray[np.uint64]) -> None:
        """Compare what has one band in common, and join what is alike."""
        members, buckets = _shared(hashes)
        order = np.lexsort((members, before[members], buckets))
        members, buckets = members[order], buckets[order]
        open_ones = _in_several(find(self.roots, members), buckets)
        members, buckets = members[open_ones], buckets[open_ones]
        step = _ROWS_AT_A_TIME
        for start in range(0, len(members), step):
            part = slice(start, start + step + _NEIGHBOURS)
            self._compare_neighbours(members[part], buckets[part])

    def _compare_neighbours(self, members: Indices, buckets: Indices) -> None:
        rows = self._firsts[members]
        values = self._file.rows(rows)
        for distance in range(1, min(_NEIGHBOURS, len(members) - 1) + 1):
            roots = find(self.roots, members)
            left = np.flatnonzero((buckets[:-distance] == buckets[distance:]) & (roots[:-distance] != roots[distance:]))
            equal = np.count_nonzero(values[left] == values[left + distance], axis=1)
            alike = equal >= self._bands.min_equal
            left, equal = left[alike], equal[alike]
            if len(left):
                self._note(rows[left], rows[left + distance], equal)
                join(self.roots, members[left], members[left + distance])

    def _note(self, rows: Indices, others: Indices, equal: Indices) -> None:
        low, high = np.minimum(rows, others), np.maximum(rows, others)
        self.pairs += zip(low.tolist(), high.tolist(), equal.tolist(), strict=True)
        if len(self.pairs) > _ROWS_AT_A_TIME:
            self.pairs = sorted(self.pairs)[: _ROWS_AT_A_TIME // 2]


class _SignatureFile:
    """Signatures on disk, read a slice at a time so that they don't fill the memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.num_rows = path.stat().st_size // _ROW_BYTES

    def _slices(self) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        for first in range(0, self.num_rows, _ROWS_AT_A_TIME):
            yield first, self._read(first, min(_ROWS_AT_A_TIME, self.num_rows - first))

    def _read(self, first: int, count: int) -> NDArray[np.uint32]:
        found = np.fromfile(self._path, np.uint32, count * NUM_PERMUTATIONS, offset=first * _ROW_BYTES)
        return found.reshape(count, NUM_PERMUTATIONS)

    def band_hashes(self, first: int, end: int) -> NDArray[np.uint64]:
        """[N] One hash a row over some of its values."""
        hashes = np.empty(self.num_rows, np.uint64)
        for start, values in self._slices():
            part = np.zeros(len(values), np.uint64)
            for column in range(first, end):
                part = (part + values[:, column]) * np.uint64(0x9E3779B97F4A7C15)
                part ^= part >> np.uint64(29)
            hashes[start : start + len(values)] = part
        return hashes

    def rows(self, wanted: Indices) -> NDArray[np.uint32]:
        """[len(wanted), 64] The signatures of some rows."""
        found = np.empty((len(wanted), NUM_PERMUTATIONS), np.uint32)
        order = np.argsort(wanted)
        ordered = wanted[order]
        gaps = np.flatnonzero(np.diff(ordered) > 16) + 1  # what lies closer together is read at once
        with self._path.open("rb", buffering=0) as file:
            for part in np.split(np.arange(len(ordered)), gaps):
                for start in range(0, len(part), _ROWS_AT_A_TIME // 16):
                    places = part[start : start + _ROWS_AT_A_TIME // 16]
                    first, last = int(ordered[places[0]]), int(ordered[places[-1]])
                    file.seek(first * _ROW_BYTES)
                    values = np.frombuffer(file.read((last - first + 1) * _ROW_BYTES), np.uint32)
                    found[order[places]] = values.reshape(-1, NUM_PERMUTATIONS)[ordered[places] - first]
        return found


def _different(hashes: NDArray[np.uint64]) -> tuple[Indices, Indices]:
    """The first row of each hash, in the hashes' order, and the place of each row's hash in it."""
    which = every_row(len(hashes))
    order = np.argsort(hashes, kind="stable").astype(which.dtype)
    is_new = new_in(order, hashes)
    which[order] = np.cumsum(is_new, dtype=which.dtype) - 1
    return order[is_new], which


def _shared(hashes: NDArray[np.uint64]) -> tuple[Indices, Indices]:
    """The rows whose hash another has too, by hash, and the number of each one's bucket."""
    order = np.argsort(hashes)
    is_new = new_in(order, hashes)
    is_alone = is_new & np.append(is_new[1:], True)[: len(order)]
    return order[~is_alone], np.cumsum(is_new[~is_alone], dtype=np.int64)


def _in_several(roots: Indices, buckets: Indices) -> NDArray[np.bool_]:
    """Which members lie in a bucket that isn't yet one cluster; buckets are in order."""
    if not len(buckets):
        return np.zeros(0, np.bool_)
    starts = np.flatnonzero(np.diff(buckets, prepend=buckets[0] - 1))
    several = np.minimum.reduceat(roots, starts) != np.maximum.reduceat(roots, starts)
    return np.repeat(several, np.diff(starts, append=len(buckets)))
