"""Where an axis begins and ends, what stands beside it, and how a frame turns values into places."""

import math
from xml.etree import ElementTree

import pytest

from llmtune.pages.axes import Frame, axis_for, framed, tick_labels
from llmtune.pages.charts import Axis, Mark

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("values", "from_zero", "first", "last"),
    [
        ([1.0, 2.0], False, 0.94, 2.06),
        ([1.0, 2.0], True, 0.0, 2.12),
        ([2.0, math.nan, math.inf], False, 1.988, 2.012),
        ([0.0], True, 0.0, 0.06),
        ([math.nan], False, 0.0, 1.0),
        ([], True, 0.0, 1.0),
    ],
)
def test_an_axis_spans_what_is_finite(values: list[float], from_zero: bool, first: float, last: float) -> None:
    axis = axis_for(values, "GiB", from_zero=from_zero)
    assert (axis.first, axis.last, axis.unit) == (pytest.approx(first), pytest.approx(last), "GiB")


@pytest.mark.parametrize(
    ("first", "last", "labels"),
    [
        (0, 8.48, ["0", "2", "4", "6", "8"]),
        (1.988, 2.01, ["1.990", "1.995", "2.000", "2.005", "2.010"]),
        (-0.5, 0.5, ["−0.4", "−0.2", "0.0", "0.2", "0.4"]),
        (0, 10, ["0", "2", "4", "6", "8", "10"]),
        (0.9, 1.05, ["0.900", "0.925", "0.950", "0.975", "1.000", "1.025", "1.050"]),
        (0, 4e6, ["0", "1,000,000", "2,000,000", "3,000,000", "4,000,000"]),
    ],
)
def test_ticks_have_the_digits_that_they_need(first: float, last: float, labels: list[str]) -> None:
    assert [text for _, text in tick_labels(Axis(first, last, ""))] == labels


def test_a_frame_turns_values_into_places() -> None:
    frame = Frame(Axis(0, 10, ""), Axis(1, 3, ""), "", "", height=200)
    assert [frame.across(value) for value in (0, 2.5, 10, 20)] == ["0.00%", "25.00%", "100.00%", "100.00%"]
    assert [frame.down(value) for value in (3, 2, 1, 0, 9)] == [8, 108, 208, 208, 8]


def test_marks_ticks_and_names_stand_where_their_values_are() -> None:
    frame = Frame(Axis(0, 10, ""), Axis(0, 4, ""), "steps <x>", "loss", height=100)
    shown = framed("title", "said", frame, [Mark(3, "base"), Mark(5, "far")])
    drawn = ElementTree.fromstring(f"<div>{shown}</div>")
    side, chart = drawn.findall("div/svg")
    assert [(text.text, text.attrib["y"]) for text in side.iter("text")] == [
        ("0", "112"),
        ("1", "87"),
        ("2", "62"),
        ("3", "37"),
        ("4", "12"),
    ]
    marks = [line.attrib["y1"] for line in chart.iter("line") if line.attrib["class"] == "mark"]
    assert marks == ["33"]  # 8 + 100 * (1 - 3 / 4); a mark beyond the axis isn't drawn
    texts = [text.text for text in chart.iter("text")]
    assert "base" in texts and "far" not in texts and "steps <x>" in texts
    assert (chart.attrib["role"], chart.findtext("title"), chart.findtext("desc")) == ("img", "title", "said")
    assert drawn.findtext("p") == "loss"
