"""Figures as text: in sentences as many digits as their error bars bear, and never rounded onto what decides."""

import math

import pytest

from llmtune.comparison import wording
from llmtune.comparison.statistics import Interval

pytestmark = pytest.mark.fast


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (2.3134, 2.2981, 2.3287, "2.313 (95 % interval 2.298 to 2.329)"),
        (2.3134, 2.1, 2.5, "2.31 (95 % interval 2.10 to 2.50)"),
        (2.3134, -1.0, 5.6, "2.3 (95 % interval −1.0 to 5.6)"),
        (231.34, 180.0, 282.0, "231 (95 % interval 180 to 282)"),
        (2.31342, 2.31341, 2.31343, "2.3134 (95 % interval 2.3134 to 2.3134)"),
        (2.31342, math.nan, math.nan, "2.313"),
        (2.31342, -math.inf, math.inf, "2.313"),
        (2.0, 2.0, 2.0, "2.000 (95 % interval 2.000 to 2.000)"),
        (math.inf, math.nan, math.nan, "∞"),
    ],
)
def test_a_loss_has_two_digits_of_its_error(value, low, high, text) -> None:
    assert wording.in_sentence(interval(value, low, high)) == text


def test_a_loss_in_other_places() -> None:
    found = interval(0.0312, 0.021, 0.041)
    assert wording.in_sentence(found, says_95=False) == "0.031 (0.021 to 0.041)"
    assert wording.in_brackets(found, "nats") == "0.031 nats, 95 % interval 0.021 to 0.041"
    assert wording.in_brackets(interval(0.0312, math.nan, math.nan), "nats") == "0.031 nats"
    assert wording.alone(found) == "0.031"
    assert (
        wording.in_sentence(interval(-0.0312, -0.041, -0.021), "nats") == "−0.031 nats (95 % interval −0.041 to −0.021)"
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "margin", "text"),
    [
        (0.9721, 0.958, 0.986, 0.05, ("97.2 %", "95.8 to 98.6 %")),
        (0.9721, 0.92, 1.024, 0.05, ("97 %", "92 to 102 %")),
        (-0.4, -0.6, -0.2, 0.05, ("−40 %", "−60 to −20 %")),
        (0.9, 0.8, math.inf, 0.05, ("90 %", "from 80 % up")),
        (0.9, -math.inf, 1.2, 0.05, ("90 %", "up to 120 %")),
        (0.9, -math.inf, math.inf, 0.05, ("90 %", "its interval has no end")),
        (0.9, math.nan, math.nan, 0.05, ("90 %", "")),
        # 94.8 % is below the 95 % of a margin of 5 %: worse, though whole per cents would end on it.
        (0.9, 0.852, 0.948, 0.05, ("90.0 %", "85.2 to 94.8 %")),
        (0.99, 0.9503, 1.03, 0.05, ("99.00 %", "95.03 to 103.00 %")),
        (0.9, 0.852, 0.948, 0.1, ("90 %", "85 to 95 %")),
        (1.0, 0.95, 1.05, 0.05, ("100 %", "95 to 105 %")),
    ],
)
def test_a_share_of_the_gain_is_never_rounded_onto_what_decides(value, low, high, margin, text) -> None:
    assert wording.quality(interval(value, low, high), margin) == text


def test_names_are_listed_in_one_way() -> None:
    assert wording.listed(["a"]) == "a"
    assert wording.listed(["a", "b", "c"]) == "a, b and c"
    assert wording.listed([str(n) for n in range(2000)], 2) == "0, 1 and 1,998 more"


@pytest.mark.parametrize(
    ("value", "whole", "text"),
    [(36, 1000, "3.6 %"), (4.88, 134.5, "3.6 %"), (1, 10000, "0.01 %"), (990, 1000, "99 %"), (999, 1000, "100 %")],
)
def test_a_part_of_a_whole(value, whole, text) -> None:
    assert wording.part(value, whole) == text


@pytest.mark.parametrize(("value", "whole", "text"), [(9, 10, "0.90"), (101, 100, "1.01"), (123.4, 10, "12")])
def test_a_multiple(value, whole, text) -> None:
    assert wording.times(value, whole) == text


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (wording.loss(-0.02, signed=True), "−0.0200"),
        (wording.loss(math.inf), "∞"),
        (wording.half_width(interval(1.0, math.nan, math.nan)), "interval unknown"),
        (wording.half_width(interval(math.nan, math.nan, math.nan)), ""),
        (wording.half_width(interval(1.0, -math.inf, math.inf)), "± ∞"),
        (wording.half_width(interval(1.0, 0.99999, 1.00001)), "± < 0.0001"),
        (wording.half_width(interval(1.0, 1.0, 1.0)), "± 0.0000"),
        (wording.measured(interval(math.nan, 1.0, 2.0)), "NaN"),
        (wording.perplexity(12345.6), "1.23e+04"),
        (wording.perplexity(123.45), "123.5"),
        (wording.share(0.0043, 1), "0.4 %"),
        (wording.limits(interval(0.9, -math.inf, 1.04), wording.loss), "−∞ to 1.0400"),
        (wording.p_value(0.0004), "< 0.001"),
        (wording.p_value(math.nan), "-"),
        (wording.p_value(math.nextafter(0.05, 0)), "< 0.05"),
        (wording.p_value(0.0502), "> 0.05"),
        (wording.p_value(0.049), "0.049"),
        (wording.seconds(9.96), "10.0 s"),
        (wording.seconds(59.7), "1 min 00 s"),
        (wording.seconds(3599.6), "1 h 00 min"),
        (wording.seconds(360_000), "100 h 00 min"),
        (wording.price(0.0123), "0.0123"),
        (wording.gib(None), "-"),
    ],
)
def test_figures_as_text(shown: str, text: str) -> None:
    assert shown == text
