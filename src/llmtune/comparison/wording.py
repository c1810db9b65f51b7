"""Figures of a comparison as a person reads them; what isn't known is a hyphen."""

import math
from collections.abc import Callable, Sequence

from llmtune.comparison.outcome import Comparison, Metric, Pair
from llmtune.comparison.statistics import Estimate, Interval
from llmtune.pages.numbers import counted

UNKNOWN = "-"
NOT_A_NUMBER = "NaN"
METRICS: dict[Metric, str] = {"loss": "test loss", "bits_per_byte": "test bits per byte"}
UNITS: dict[Metric, str] = {"loss": "nats per supervised token", "bits_per_byte": "bits per UTF-8 byte"}
_LOSS_DIGITS = 4
_MINUS = "\N{MINUS SIGN}"
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_INFINITY = "\N{INFINITY}"
_HOUR, _MINUTE = 3600, 60


def loss(value: float | None, *, signed: bool = False) -> str:
    """A loss with four decimals, or a difference of losses with its sign."""
    return _number(value, f"{'+' if signed else ''}.{_LOSS_DIGITS}f")


def perplexity(value: float | None) -> str:
    """A perplexity with four digits."""
    if value is None or not math.isfinite(value):
        return _number(value, "f")
    return _number(value, ".3f" if value < 10 else ".2f" if value < 100 else ",.1f" if value < 10_000 else ".3g")


def share(value: float | None) -> str:
    """A share of 1 in per cent, of any size and sign."""
    if value is None or not math.isfinite(value):
        return _number(value, "f")
    return f"{_number(100 * value, ',.0f' if abs(value) >= 0.01 or not value else '.1f')} %"


def half_width(interval: Interval) -> str:
    """The 95 % interval of a loss as `± half its width`; words where it isn't known."""
    half = (interval.high - interval.low) / 2
    if math.isnan(half):
        return "interval unknown" if math.isfinite(interval.value) else ""
    if 0 < half < 0.5 * 10**-_LOSS_DIGITS:
        return f"{_PLUS_MINUS} < {10**-_LOSS_DIGITS:.{_LOSS_DIGITS}f}"
    return f"{_PLUS_MINUS} {_number(half, f'.{_LOSS_DIGITS}f')}"


def measured(interval: Interval, *, signed: bool = False) -> str:
    """A loss, or with its sign a difference of losses, with its interval; `NaN` for one that came to nothing."""
    if math.isnan(interval.value):
        return NOT_A_NUMBER
    return f"{loss(interval.value, signed=signed)} {half_width(interval)}".strip()


def limits(interval: Interval, shown: Callable[[float], str]) -> str:
    """An interval's two ends, `93 to 104 %`; words where it isn't known.

    Args:
        interval: the interval.
        shown: turns an end into text.
    """
    if math.isnan(interval.low) or math.isnan(interval.high):
        return "interval unknown" if math.isfinite(interval.value) else ""
    low, high = shown(interval.low), shown(interval.high)
    return f"{low.removesuffix(' %') if high.endswith(' %') else low} to {high}"


def basis(estimate: Estimate, num_seeds: int, *, whole: bool = True) -> str:
    """How many seeds an estimate rests on and how far that carries; empty for what has no seed.

    Args:
        estimate: the estimate.
        num_seeds: how many there are.
        whole: whether to say all that is meant by `examples only`.
    """
    if estimate.basis == "no seeds":
        return ""
    seeds = counted(num_seeds, "seed")
    if estimate.basis == "examples":
        return f"{seeds}, examples only" + (", seed variance unknown" if whole else "")
    return f"{seeds}, weak" if estimate.basis == "few seeds" else seeds


def p_value(value: float | None) -> str:
    """A probability with three decimals."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: int | None) -> str:
    """A count with separated thousands."""
    return _number(value, ",.0f")


def gib(value: float | None) -> str:
    """Memory in GiB."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.2f} GiB"


def seconds(value: float | None) -> str:
    """A length of time in its two largest units."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    whole = round(value)
    if whole < _MINUTE:
        return f"{value:.1f} s" if value < 10 else f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    return f"{whole // _HOUR:,} h {whole % _HOUR // _MINUTE:02} min"


def price(value: float | None) -> str:
    """What training cost, in the currency of `compare.price_per_hour`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.2f}" if value >= 1 else f"{value:.3g}"


def better(pair: Pair) -> str:
    """Which of two rows can be said to be better."""
    return pair.lower or "no claim"


def interval_note(comparison: Comparison) -> list[str]:
    """What the intervals are, in a sentence or two; of those that say less, why."""
    rows = [row for row in comparison.rows if not row.is_base]
    kinds = {row.loss.basis for row in rows}
    groups = counted(comparison.num_clusters, "independent group")
    said = [
        "Intervals are 95 %: of those made so from new seeds and new examples, 95 in 100 hold the true value "
        f"(Student t on the crossed variance of seeds and test examples; {groups} of these)."
    ]
    if "few seeds" in kinds:
        said.append("Two seeds are weak: the variance between seeds rests on a single difference.")
    if "examples" in kinds:
        said.append("One seed: examples only, seed variance unknown; another seed may turn the order, no claim.")
    return said


def quality_note(comparison: Comparison) -> str | None:
    """What quality and good enough mean; None where no row has them."""
    judged = [row for row in comparison.rows if row.quality is not None or row.standing not in (None, "no claim")]
    if comparison.unfair or not judged:
        return None
    return (
        "Quality is the share of full's gain over the base model. Good enough: what is missing is surely less than "
        f"{share(comparison.margin)} of that gain."
    )


def test_set(comparison: Comparison) -> str:
    """How much was measured."""
    examples = counted(comparison.num_test_examples, "test example")
    return f"{examples}, {counted(comparison.num_test_tokens, 'supervised token')}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _number(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return f"{_MINUS if value < 0 else ''}{_INFINITY}"
    return format(value, form).replace("-", _MINUS)
