"""Paired differences with error bars: means per token over seeds and test examples, ratios of them, many at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from llmtune.comparison import fieller
from llmtune.comparison.crossed import LEVEL, effects, half_widths, mean_squares, p_values
from llmtune.comparison.deciding import Need, find_need

__all__ = ["Basis", "Cells", "Estimate", "Interval", "Need", "estimate", "holm", "ratio", "would_decide"]

Basis = Literal["seeds", "few seeds", "examples", "no seeds"]
"""What an interval rests on. `seeds`: 3 or more. `few seeds`: 2, which is weak: where seeds differ much it holds the
truth in 88 % of cases. `examples`: one seed, so the variance of seeds is unknown and nothing may be claimed.
`no seeds`: the quantity has none (a base model), and the examples' variance is all there is."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    """nan: unknown; -inf: no end."""
    high: float
    """nan: unknown; inf: no end."""


@dataclass(frozen=True, kw_only=True)
class Estimate(Interval):
    """A mean, how sure it is, and whether it can be told from 0."""

    standard_error: float
    degrees_of_freedom: float
    p_value: float
    """Two-sided, of a true value of 0; below 0.05 just where 0 lies outside the interval. From there down it is on the
    safe side, so that several can be adjusted."""
    num_seeds: int
    num_clusters: int
    """Clusters of test examples that hold tokens."""
    basis: Basis

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit, such as bits instead of nats."""
        ends = sorted((self.low * factor, self.high * factor))
        return replace(
            self,
            value=self.value * factor,
            low=ends[0],
            high=ends[1],
            standard_error=self.standard_error * abs(factor),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Summed losses of S seeds on N clusters of test examples; tables of one test set add up cell by cell."""

    sums: np.ndarray
    """float64 [S, N]: nats."""
    weights: np.ndarray
    """float64 [N]: supervised tokens, or bytes."""

    def __post_init__(self) -> None:
        """Refuse tables that hold nothing or don't fit together."""
        if self.sums.ndim != 2 or self.sums.shape[0] == 0 or self.weights.shape != self.sums.shape[1:]:
            raise ValueError(f"sums of shape {self.sums.shape} don't fit weights of shape {self.weights.shape}")
        if not (self.weights >= 0).all() or self.weights.sum() == 0:
            raise ValueError("weights must be 0 or more, and not all 0")

    def __add__(self, other: "Cells") -> "Cells":
        return self._combined(other, 1.0)

    def __sub__(self, other: "Cells") -> "Cells":
        return self._combined(other, -1.0)

    def __rmul__(self, factor: float) -> "Cells":
        return Cells(sums=factor * self.sums, weights=self.weights)

    def repeated(self, num_seeds: int) -> "Cells":
        """A base model's one row, as often as there are seeds to compare it with."""
        return Cells(sums=np.repeat(self.sums, num_seeds, axis=0), weights=self.weights)

    def counted(self) -> "Cells":
        """Without the clusters that hold neither tokens nor loss."""
        kept = (self.weights > 0) | (self.sums != 0).any(0)
        return Cells(sums=self.sums[:, kept], weights=self.weights[kept])

    @property
    def has_variance(self) -> bool:
        """Whether the examples' variance can be known: two clusters with tokens, no loss that is infinite or nan."""
        return bool((self.weights > 0).sum() > 1 and np.isfinite(self.sums).all())

    def _combined(self, other: "Cells", sign: float) -> "Cells":
        # Broadcasting would make three seeds of one.
        if self.sums.shape != other.sums.shape or not np.array_equal(self.weights, other.weights):
            raise ValueError("only tables of the same seeds, clusters and weights can be compared")
        with np.errstate(invalid="ignore"):
            return Cells(sums=self.sums + sign * other.sums, weights=self.weights)


def estimate(cells: Cells, *, has_seeds: bool = True) -> Estimate:
    """The mean per token with its 95 % interval, for new seeds and new examples alike.

    Seeds and clusters are crossed random effects, variances come from the three mean squares, degrees of freedom are
    Satterthwaite's on the safe side. From 3 seeds on the interval holds the truth in 93 to 98 % of simulated
    comparisons with 114 examples; with 20, of which few decide, in 89 to 94 % (scripts/simulate_comparison.py), and in
    as few as 83 % where these few are both much longer and much further apart than the others.

    Args:
        cells: losses, or a difference of them.
        has_seeds: False for a quantity that has none; its rows are taken for copies of one.
    """
    cells = cells.counted()
    sums = cells.sums if has_seeds else cells.sums.mean(0, keepdims=True)
    num_seeds, num_clusters = sums.shape
    if not cells.has_variance:
        with np.errstate(invalid="ignore"):
            value = float(sums.mean(0).sum() / cells.weights.sum())
        low = high = error = degrees = p_value = math.nan
    else:
        parts = effects(sums, cells.weights)
        components = mean_squares(parts).components()
        value, half_width = float(parts.mean), float(half_widths(components))
        low, high = value - half_width, value + half_width
        error, degrees = math.sqrt(components.variance), float(components.degrees_of_freedom)
        p_value = float(p_values(parts.mean, components))
    return Estimate(
        value=value,
        low=low,
        high=high,
        standard_error=error,
        degrees_of_freedom=degrees,
        p_value=p_value,
        num_seeds=num_seeds,
        num_clusters=num_clusters,
        basis=_basis(num_seeds, has_seeds),
    )


def _basis(num_seeds: int, has_seeds: bool) -> Basis:
    if not has_seeds:
        return "no seeds"
    return "examples" if num_seeds == 1 else "few seeds" if num_seeds == 2 else "seeds"


def ratio(numerator: Cells, denominator: Cells) -> Interval:
    """A ratio of two means with its 95 % interval after Fieller.

    It holds each q for which `estimate(numerator - q * denominator)` has a p-value of 0.05 or more. Where the
    denominator can't be told from 0 it has no end on one side or both, and says little.
    """
    both = numerator + denominator
    top, bottom = float(numerator.sums.sum()), float(denominator.sums.sum())
    if not both.has_variance:
        value = top / bottom if bottom else math.nan
        return Interval(value=value, low=math.nan, high=math.nan)
    if bottom == 0:
        return Interval(value=math.nan, low=-math.inf, high=math.inf)
    kept = (both.weights > 0) | (numerator.sums != 0).any(0) | (denominator.sums != 0).any(0)
    low, high = fieller.bounds(numerator.sums[:, kept], denominator.sums[:, kept], both.weights[kept])
    return Interval(value=top / bottom, low=low, high=high)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several, in their order; a nan stays nan and doesn't count.

    Where all that is below 0.05 is claimed, any claim at all is false in at most 5 % of cases (Holm, "A simple
    sequentially rejective multiple test procedure", 1979).
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def would_decide(cells: Cells, alpha: float = LEVEL) -> Need:
    """How many more seeds, or how many times the test examples, would tell a mean from 0 that can't be told yet.

    Args:
        cells: a difference.
        alpha: level of the test; below 0.05 where it is one of several.
    """
    cells = cells.counted()
    if not cells.has_variance:
        return Need()
    parts = effects(cells.sums, cells.weights)
    return find_need(float(parts.mean), mean_squares(parts).components(), alpha)
