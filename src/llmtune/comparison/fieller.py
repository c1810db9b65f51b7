"""The interval of a ratio of two means that are measured on the same seeds and examples.

Fieller's ("Some problems in interval estimation", 1954, doi:10.1111/j.2517-6161.1954.tb00159.x): it holds each q for
which `numerator - q * denominator` can't be told from 0. It needs no normal ratio, isn't symmetric, and has no end
where the denominator is too near to 0.
"""

import math

import numpy as np

from llmtune.comparison.crossed import LEVEL, Effects, effects, half_widths, mean_squares, squares_of_sum

_ROUNDS, _POINTS = 8, 257
"""Each round narrows the border down to one of the points' 256 spaces; eight are more than a double can hold."""


def bounds(
    numerator: np.ndarray, denominator: np.ndarray, weights: np.ndarray, alpha: float = LEVEL
) -> tuple[float, float]:
    """The two ends of the 1 - alpha interval, -inf and inf where there is none.

    Degrees of freedom move with q, so the set need not be one piece: given is the piece around the ratio.

    Args:
        numerator: [S, N] summed nats.
        denominator: [S, N] summed nats; their mean is not 0.
        weights: [N] tokens.
        alpha: what is tested at.
    """
    bottom = effects(denominator, weights)
    value = float(effects(numerator, weights).mean / bottom.mean)
    # From here on q is counted from the ratio itself: with the raw sums, the squares of two near-equal tables would
    # cancel.
    top = effects(numerator - value * denominator, weights)
    scale = float(half_widths(mean_squares(top).components(), alpha) / np.abs(bottom.mean))
    if scale == 0:
        told_from_zero = np.abs(bottom.mean) > half_widths(mean_squares(bottom).components(), alpha)
        return (value, value) if told_from_zero else (-math.inf, math.inf)
    return value - _reach(top, bottom, -scale, alpha), value + _reach(top, bottom, scale, alpha)


def _reach(top: Effects, bottom: Effects, step: float, alpha: float) -> float:
    """How far from the ratio, in the direction of `step`, the first q lies that is rejected.

    q runs over `step * share / (1 - share)` for shares of 0 to 1. The test doesn't change where a table is multiplied,
    so `top - q * bottom` is taken times `1 - share`, and a share of 1, the test of the denominator alone, is no
    exception.
    """
    low, high = 0.0, 1.0
    for _ in range(_ROUNDS):
        shares = np.linspace(low, high, _POINTS)
        factors = (1 - shares, -step * shares)
        squares = squares_of_sum(top, bottom, factors)
        rejected = np.abs(factors[1] * bottom.mean) > half_widths(squares.components(), alpha)
        if not rejected.any():
            return _distance(high, step)
        first = max(int(rejected.argmax()), 1)
        low, high = float(shares[first - 1]), float(shares[first])
    return _distance(low, step)


def _distance(share: float, step: float) -> float:
    return abs(step) * share / (1 - share) if share < 1 else math.inf
