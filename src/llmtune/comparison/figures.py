"""Figures in a sentence: never more digits than their error bars bear."""

import math

from llmtune.comparison.outcome import Metric
from llmtune.comparison.statistics import Interval

UNIT: dict[Metric, str] = {"loss": "nats per token", "bits_per_byte": "bits per byte"}
_MOST_DECIMALS = 4
_DECIMALS_ALONE = 3
_NARROW = 0.02
"""Half-width of a share from which on a decimal of its per cent says nothing."""


def measured(interval: Interval, *, says_95: bool = True) -> str:
    """A loss or a difference with its interval: `2.313 (95 % interval 2.298 to 2.328)`.

    Args:
        interval: the value.
        says_95: whether to say what kind of interval it is.
    """
    ends = _ends(interval, says_95=says_95)
    return f"{alone(interval)} ({ends})" if ends else alone(interval)


def in_brackets(interval: Interval, unit: str) -> str:
    """The same for a place in brackets: `0.003 nats per token, 95 % interval -0.01 to 0.02`."""
    ends = _ends(interval, says_95=True)
    return f"{alone(interval)} {unit}{', ' if ends else ''}{ends}"


def _ends(interval: Interval, *, says_95: bool) -> str:
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    decimals = _decimals(interval)
    kind = "95 % interval " if says_95 else ""
    return f"{kind}{interval.low:.{decimals}f} to {interval.high:.{decimals}f}"


def alone(interval: Interval) -> str:
    """The value without its interval, and with no more digits than that bears."""
    return f"{interval.value:.{_decimals(interval)}f}"


def share(interval: Interval, of_what: str = "", *, says_95: bool = True) -> str:
    """A share in per cent with its interval: `97.2 % of full's gain (95 % interval 95.8 to 98.6 %)`.

    Args:
        interval: the share; 1 is all.
        of_what: what stands between the value and its interval.
        says_95: whether to say what kind of interval it is.
    """
    half_width = (interval.high - interval.low) / 2
    decimals = 1 if half_width < _NARROW else 0
    low, high = (f"{100 * end:.{decimals}f}" for end in (interval.low, interval.high))
    kind = "95 % interval " if says_95 else ""
    ends = f" ({kind}{low} to {high} %)"
    if math.isnan(half_width):
        ends = ""
    elif not math.isfinite(interval.low) and not math.isfinite(interval.high):
        ends = " (its interval has no end)"
    elif not math.isfinite(interval.high):
        ends = f" ({kind}from {low} % up)"
    elif not math.isfinite(interval.low):
        ends = f" ({kind}up to {high} %)"
    return f"{100 * interval.value:.{decimals}f} %{of_what}{ends}"


def part(value: float, whole: float) -> str:
    """One amount as a share of another: `3.6 %`."""
    percent = 100 * value / whole
    return f"{percent:.2g} %" if percent < 99.5 else f"{percent:.0f} %"


def times(value: float, whole: float) -> str:
    """One amount as a multiple of another with two decimals, fewer for large ones."""
    multiple = value / whole
    return f"{multiple:.2f}" if multiple < 10 else f"{multiple:.0f}"


def _decimals(interval: Interval) -> int:
    """So many that half the interval's width has two digits."""
    half_width = (interval.high - interval.low) / 2
    if not (math.isfinite(half_width) and half_width > 0):
        return _DECIMALS_ALONE
    return min(_MOST_DECIMALS, max(0, 1 - math.floor(math.log10(half_width))))
