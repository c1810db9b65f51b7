"""Which rows are unlike the others, and by what."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]

KINDS = ("length", "repetition", "characters")

MOST_REPETITION = 0.9
MOST_ODD_SHARE = 0.02
_FEWEST_ROWS = 50
_MOST_DEVIATIONS = 4.0
_DEVIATION_OF_NORMAL = 1.4826  # the median deviation times this is the standard deviation of a normal distribution
_SMALLEST_LENGTH_DEVIATION = 0.1  # of the logarithm: rows of nearly equal length don't make a tenth more an outlier
_SMALLEST_LOSS_DEVIATION = 0.05  # nats


@dataclass(frozen=True)
class Measured:
    """Columns in which outliers are looked for."""

    num_words: NDArray[np.int32]
    repetition: NDArray[np.float32]
    odd_share: NDArray[np.float32]


def find_outliers(columns: Measured) -> dict[str, Flags]:
    """Which rows are outliers, by kind.

    Length: the logarithm of the words lies more than four standard deviations from the median, where the deviation is
    measured by the median one, so that outliers don't widen it; only from 50 rows on. Repetition and odd characters
    have fixed bounds.
    """
    lengths = np.log1p(columns.num_words.astype(np.float32))
    return {
        "length": _far_from_median(lengths, _SMALLEST_LENGTH_DEVIATION),
        "repetition": columns.repetition > MOST_REPETITION,
        "characters": columns.odd_share > MOST_ODD_SHARE,
    }


def find_loss_outliers(losses: NDArray[np.float64]) -> Flags:
    """Which losses lie more than four standard deviations from the median; one that is no number always does."""
    known = np.isfinite(losses)
    flags = ~known
    flags[known] = _far_from_median(losses[known], _SMALLEST_LOSS_DEVIATION)
    return flags


def describe_outlier(kind: str, columns: Measured, row: int, median_words: float) -> str:
    """Why a row is an outlier, in a few words that quote nothing of it."""
    if kind == "length":
        return f"{_words(int(columns.num_words[row]))}, the median is {median_words:,.0f}"
    if kind == "repetition":
        return f"{columns.repetition[row]:.0%} of it repeats what stands before"
    return f"{columns.odd_share[row]:.1%} of its characters are ones that no one types"


def describe_loss(losses: NDArray[np.float64], row: int, median: float) -> str:
    """Why a row's loss is an outlier."""
    return f"loss {losses[row]:.2f} nats a token, the median is {median:.2f}"


def _words(number: int) -> str:
    return f"{number:,} word" if number == 1 else f"{number:,} words"


def _far_from_median(values: NDArray[np.float32 | np.float64], smallest: float) -> Flags:
    if len(values) < _FEWEST_ROWS:
        return np.zeros(len(values), np.bool_)
    distances = np.abs(values - np.median(values))
    deviation = max(_DEVIATION_OF_NORMAL * float(np.median(distances)), smallest)
    return distances > _MOST_DEVIATIONS * deviation
