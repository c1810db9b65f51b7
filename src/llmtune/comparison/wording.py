"""Figures of a comparison as a person reads them; what isn't known is a hyphen."""

import math
from collections.abc import Callable, Sequence

from llmtune.comparison.crossed import LEVEL
from llmtune.comparison.outcome import Comparison, Metric, Pair, Row
from llmtune.comparison.statistics import Estimate, Interval
from llmtune.pages.numbers import counted

UNKNOWN = "-"
NOT_A_NUMBER = "NaN"
METRICS: dict[Metric, str] = {"loss": "test loss", "bits_per_byte": "test bits per byte"}
UNITS: dict[Metric, str] = {"loss": "nats per token", "bits_per_byte": "bits per byte"}
_LOSS_DIGITS = 4
_DIGITS_ALONE = 3
MOST_NAMES = 3
"""Rows that a sentence names at most."""
BETTER = "better than full"
WEAK = "weak: 2 seeds"
"""What stands beside a claim on two seeds."""
_NARROW = 0.02
"""Half-width of a share from which on a decimal of its per cent says nothing."""
_MOST_SHARE_DECIMALS = 3
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


def share(value: float, decimals: int = 0) -> str:
    """A share of 1 in per cent, of any size and sign."""
    if not math.isfinite(value):
        return _number(value, "f")
    return f"{_number(100 * value, f',.{decimals}f')} %"


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
    """An interval's two ends, `7.39 to 7.69`; words where it isn't known.

    Args:
        interval: the interval.
        shown: turns an end into text.
    """
    if math.isnan(interval.low) or math.isnan(interval.high):
        return "interval unknown" if math.isfinite(interval.value) else ""
    return f"{shown(interval.low)} to {shown(interval.high)}"


def quality(interval: Interval, margin: float) -> tuple[str, str]:
    """A share of full's gain in per cent, and its interval: `97.2 %` and `95.8 to 98.6 %`.

    Args:
        interval: the share; 1 is all.
        margin: `compare.margin`: no end of the interval is rounded onto 1 less this, which decides.
    """
    decimals = 1 if (interval.high - interval.low) / 2 < _NARROW else 0
    ends = [end for end in (interval.low, interval.high) if math.isfinite(end)]
    while decimals < _MOST_SHARE_DECIMALS and any(_hides(end, 1 - margin, decimals) for end in ends):
        decimals += 1
    low, high = share(interval.low, decimals), share(interval.high, decimals)
    if math.isnan(interval.low) or math.isnan(interval.high):
        told = ""
    elif math.isinf(interval.low):
        told = "its interval has no end" if math.isinf(interval.high) else f"up to {high}"
    else:
        told = f"from {low} up" if math.isinf(interval.high) else f"{low.removesuffix(' %')} to {high}"
    return share(interval.value, decimals), told


def _hides(end: float, border: float, decimals: int) -> bool:
    """Whether an end that lies beside the border is rounded onto it."""
    return not math.isclose(end, border, abs_tol=1e-9) and share(end, decimals) == share(border, decimals)


def in_sentence(interval: Interval, unit: str = "", *, says_95: bool = True) -> str:
    """A loss with as many digits as its interval bears: `2.313 nats per token (95 % interval 2.298 to 2.328)`.

    Args:
        interval: the value.
        unit: what stands behind the value.
        says_95: whether to say what kind of interval it is.
    """
    ends = _ends(interval, says_95=says_95)
    return " ".join(filter(None, [alone(interval), unit, f"({ends})" if ends else ""]))


def in_brackets(interval: Interval, unit: str) -> str:
    """The same for a place in brackets: `0.003 nats per token, 95 % interval −0.010 to 0.020`."""
    return ", ".join(filter(None, [f"{alone(interval)} {unit}", _ends(interval, says_95=True)]))


def alone(interval: Interval) -> str:
    """The value without its interval, and with no more digits than that bears."""
    return _number(interval.value, f".{_digits(interval)}f")


def _ends(interval: Interval, *, says_95: bool) -> str:
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    shown = limits(interval, lambda end: _number(end, f".{_digits(interval)}f"))
    return f"95 % interval {shown}" if says_95 else shown


def _digits(interval: Interval) -> int:
    """So many decimals that half the interval's width has two digits."""
    half = (interval.high - interval.low) / 2
    if not (math.isfinite(half) and half > 0):
        return _DIGITS_ALONE
    return min(_LOSS_DIGITS, max(0, 1 - math.floor(math.log10(half))))


def part(value: float, whole: float) -> str:
    """One amount as a share of another: `3.6 %`."""
    percent = 100 * value / whole
    return f"{percent:.2g} %" if percent < 99.5 else f"{percent:.0f} %"


def times(value: float, whole: float) -> str:
    """One amount as a multiple of another with two decimals, fewer for large ones."""
    multiple = value / whole
    return f"{multiple:.2f}" if multiple < 10 else f"{multiple:.0f}"


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


def weakness(estimate: Estimate) -> str:
    """Why a difference carries little, in two words; empty where it carries.

    Args:
        estimate: the difference, on the seeds that both sides have.
    """
    return {"few seeds": WEAK, "examples": "examples only: 1 seed"}.get(estimate.basis, "")


def p_value(value: float | None) -> str:
    """A probability with three decimals, never rounded onto the 0.05 that decides."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if f"{value:.3f}" == f"{LEVEL:.3f}" and value != LEVEL:
        return f"{'<' if value < LEVEL else '>'} {LEVEL:g}"
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


def is_better_than_full(row: Row, comparison: Comparison) -> bool:
    """Whether a row that is good enough gains more than full for sure: alone, and among all pairs.

    Args:
        row: one of the comparison's rows, by its name there.
        comparison: that it belongs to.
    """
    if row.standing != "good enough" or row.quality is None or not row.quality.low > 1:
        return False
    full = {other.name for other in comparison.rows if other.standing == "reference" and other.group == row.group}
    beside = [pair for pair in comparison.pairs if {pair.first, pair.second} - {row.name} <= full]
    return all(pair.lower == row.name for pair in beside if row.name in (pair.first, pair.second))


def standing(row: Row, comparison: Comparison) -> str:
    """How a row stands to full in a word or three; empty where it has no standing."""
    return BETTER if is_better_than_full(row, comparison) else row.standing or ""


def interval_note(comparison: Comparison) -> list[str]:
    """What the intervals are, in a sentence or two; of those that say less, why."""
    rows = [row for row in comparison.rows if not row.is_base]
    compared = [row.to_full for row in rows if row.to_full is not None]
    compared += [pair.difference for pair in comparison.pairs]
    # What the seeds carry matters where something is compared.
    kinds = set() if comparison.unfair else {found.basis for found in (*(row.loss for row in rows), *compared)}
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
    if comparison.unfair or all(row.quality is None for row in comparison.rows):
        return None
    return (
        "Quality is the share of full's gain over the base model. Good enough: what is missing is surely less than "
        f"{100 * comparison.margin:g} % of that gain."
    )


def untold_reasons(comparison: Comparison) -> list[str]:
    """Why nothing is ranked, as far as the verdict doesn't say it."""
    # Within the verdict a reason may begin with a small letter.
    return [reason for reason in comparison.unfair if reason[1:] not in comparison.verdict]


def test_set(comparison: Comparison) -> str:
    """How much was measured."""
    examples = counted(comparison.num_test_examples, "test example")
    return f"{examples}, {counted(comparison.num_test_tokens, 'supervised token')}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """`a, b and c`, the rest as a number."""
    shown = [*names[:most], *([f"{len(names) - most:,} more"] if len(names) > most else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _number(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return f"{_MINUS if value < 0 else ''}{_INFINITY}"
    return format(value, form).replace("-", _MINUS)
