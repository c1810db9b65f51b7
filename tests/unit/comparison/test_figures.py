"""Figures in sentences: as many digits as their error bars bear."""

import math

import pytest

from llmtune.comparison.figures import alone, in_brackets, measured, part, share, times
from llmtune.comparison.statistics import Interval

pytestmark = pytest.mark.fast


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (2.3134, 2.2981, 2.3287, "2.313 (95 % interval 2.298 to 2.329)"),
        (2.3134, 2.1, 2.5, "2.31 (95 % interval 2.10 to 2.50)"),
        (2.3134, -1.0, 5.6, "2.3 (95 % interval -1.0 to 5.6)"),
        (231.34, 180.0, 282.0, "231 (95 % interval 180 to 282)"),
        (2.31342, 2.31341, 2.31343, "2.3134 (95 % interval 2.3134 to 2.3134)"),
        (2.31342, math.nan, math.nan, "2.313"),
        (2.31342, -math.inf, math.inf, "2.313"),
        (2.0, 2.0, 2.0, "2.000 (95 % interval 2.000 to 2.000)"),
        (math.inf, math.nan, math.nan, "inf"),
    ],
)
def test_a_loss_has_two_digits_of_its_error(value, low, high, text) -> None:
    assert measured(interval(value, low, high)) == text


def test_a_loss_in_other_places() -> None:
    found = interval(0.0312, 0.021, 0.041)
    assert measured(found, says_95=False) == "0.031 (0.021 to 0.041)"
    assert in_brackets(found, "nats") == "0.031 nats, 95 % interval 0.021 to 0.041"
    assert in_brackets(interval(0.0312, math.nan, math.nan), "nats") == "0.031 nats"
    assert alone(found) == "0.031"


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.9721, 0.958, 0.986, "97.2 % (95 % interval 95.8 to 98.6 %)"),
        (0.9721, 0.92, 1.024, "97 % (95 % interval 92 to 102 %)"),
        (-0.4, -0.6, -0.2, "-40 % (95 % interval -60 to -20 %)"),
        (0.9, 0.8, math.inf, "90 % (95 % interval from 80 % up)"),
        (0.9, -math.inf, 1.2, "90 % (95 % interval up to 120 %)"),
        (0.9, -math.inf, math.inf, "90 % (its interval has no end)"),
        (0.9, math.nan, math.nan, "90 %"),
    ],
)
def test_a_share_is_in_per_cent(value, low, high, text) -> None:
    assert share(interval(value, low, high)) == text


def test_a_share_of_something() -> None:
    assert share(interval(0.5, 0.4, 0.6), " of full's gain", says_95=False) == "50 % of full's gain (40 to 60 %)"


@pytest.mark.parametrize(
    ("value", "whole", "text"),
    [(36, 1000, "3.6 %"), (4.88, 134.5, "3.6 %"), (1, 10000, "0.01 %"), (990, 1000, "99 %"), (999, 1000, "100 %")],
)
def test_a_part_of_a_whole(value, whole, text) -> None:
    assert part(value, whole) == text


@pytest.mark.parametrize(("value", "whole", "text"), [(9, 10, "0.90"), (101, 100, "1.01"), (123.4, 10, "12")])
def test_a_multiple(value, whole, text) -> None:
    assert times(value, whole) == text
