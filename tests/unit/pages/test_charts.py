"""Where bars and lines stand, against places worked out by hand."""

import re
from xml.etree import ElementTree

import pytest

from llmtune.pages.charts import Axis, Bins, Mark, Share, axis_over, bars, histogram, patterns, stacked

pytestmark = pytest.mark.fast


def drawing(markup: str) -> ElementTree.Element:
    """The chart; charts are well-formed XML."""
    return ElementTree.fromstring(f"<div>{markup}</div>")


def rects(markup: str, kind: str = "bar") -> list[tuple[str, ...]]:
    """Place, width, top and height of each bar, and its class."""
    found = [rect for rect in drawing(markup).iter("rect") if kind in rect.attrib["class"].split()]
    return [tuple(rect.attrib[name] for name in ("x", "width", "y", "height", "class")) for rect in found]


def test_histogram_bars_stand_where_their_borders_are() -> None:
    marks = [Mark(20, "max 20", is_limit=True), Mark(15, "median 15")]
    chart = histogram("lengths", Bins([0, 10, 20, 40], [5, 10, 1], "rows"), Axis(0, 40, "tokens"), marks, 100)
    # Two marks and the count take three lines of 18 pixels; the highest bar of 10 is 100 pixels high.
    assert rects(chart) == [
        ("0.00%", "25.00%", "104", "50", "bar a"),
        ("25.00%", "25.00%", "54", "100", "bar a"),
        ("50.00%", "50.00%", "144", "10", "bar cut"),
    ]
    lines = [line for line in drawing(chart).iter("line") if "mark" in line.attrib["class"]]
    assert [(line.attrib["x1"], line.attrib["y1"], line.attrib["y2"], line.attrib["class"]) for line in lines] == [
        ("37.50%", "2", "154", "mark"),
        ("50.00%", "20", "154", "mark limit"),
    ]


def test_histogram_is_told_to_those_who_do_not_see_it() -> None:
    chart = drawing(
        histogram("lengths", Bins([0, 10, 20], [1, 1204], "rows"), Axis(0, 20, "tokens"), [Mark(9, "p <b>")])
    )
    svg = chart.find("svg")
    assert svg is not None and svg.attrib["role"] == "img"
    assert [svg.findtext("title"), svg.findtext("desc")] == ["lengths", "1,205 rows, at most 1,204 in a bar; p <b>."]
    tips = [rect.findtext("title") for rect in svg.iter("rect")]
    assert tips == ["0 to 10 tokens: 1 rows", "10 to 20 tokens: 1,204 rows"]


def test_labels_turn_away_from_the_border() -> None:
    chart = histogram("", Bins([0, 100], [1], "rows"), Axis(0, 100, "tokens"), [Mark(49, "left"), Mark(51, "right")])
    texts = {text.text: text.attrib for text in drawing(chart).iter("text")}
    assert (texts["left"]["class"], texts["left"]["dx"]) == ("mark start", "6")
    assert (texts["right"]["class"], texts["right"]["dx"]) == ("mark end", "-6")


def test_a_mark_beyond_the_axis_is_named_at_its_end() -> None:
    limit = Mark(512, "max 512", is_limit=True)
    chart = drawing(histogram("", Bins([0, 16], [3], "rows"), Axis(0, 16, "tokens"), [limit]))
    assert [line.attrib["class"] for line in chart.iter("line") if "mark" in line.attrib["class"]] == []
    text = next(text for text in chart.iter("text") if text.text == "max 512 →")
    assert (text.attrib["x"], text.attrib["class"]) == ("100%", "mark limit end")


def test_an_empty_bar_is_not_drawn_and_a_low_one_is_seen() -> None:
    chart = histogram("", Bins([0, 1, 2, 3], [0, 1, 100_000], "rows"), Axis(0, 3, ""), (), 100)
    assert [(x, height) for x, _, _, height, _ in rects(chart)] == [("33.33%", "1"), ("66.67%", "100")]


def test_doublings_are_as_wide_as_each_other() -> None:
    axis = axis_over([([16, 32, 64, 128, 256], [1, 0, 2, 1])], [Mark(512, "")], "tokens")
    assert axis == Axis(16, 512, "tokens", is_log=True)
    assert [axis.place(value) for value in (8, 16, 32, 128, 512, 1024)] == [0, 0, 20, 60, 100, 100]
    assert axis.ticks() == [16, 32, 64, 128, 256, 512]


@pytest.mark.parametrize(
    ("first", "last", "ticks"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 512, [0, 100, 200, 300, 400, 500]),
        (0, 7, [0, 2, 4, 6]),
        (900, 1000, [900, 920, 940, 960, 980, 1000]),
    ],
)
def test_ticks_are_round(first: float, last: float, ticks: list[float]) -> None:
    assert Axis(first, last, "").ticks() == ticks


def test_an_axis_shows_what_is_filled_and_every_mark_that_is_near() -> None:
    edges = [0, 10, 20, 30, 40, 50]
    assert axis_over([(edges, [0, 1, 0, 0, 0]), (edges, [0, 0, 2, 0, 0])], [Mark(35, "")], "") == Axis(0, 35, "")
    assert axis_over([(edges, [1, 0, 0, 0, 0])], [Mark(20, ""), Mark(21, "")], "") == Axis(0, 20, "")
    assert axis_over([([300, 310, 320], [1, 1])], [], "") == Axis(300, 320, "")
    assert axis_over([([], [])], [], "") == Axis(0, 1, "")


def test_bars_are_as_long_as_their_counts() -> None:
    shown = bars([Share("many", 200), Share("<half>", 100, "cut"), Share("few", 0.2), Share("none", 0)])
    assert [(width, kind) for _, width, _, _, kind in rects(shown)] == [
        ("100.00%", "bar a"),
        ("50.00%", "bar cut"),
        ("0.50%", "bar a"),
        ("0.00%", "bar a"),
    ]
    assert [part.text for part in drawing(shown).iter("span")] == ["many", "<half>", "few", "none"]


def test_parts_of_a_whole_follow_each_other() -> None:
    shown = stacked("rows", [Share("a", 50), Share("b", 0, "b"), Share("c", 150, "c")], "rows")
    assert [(x, width) for x, width, *_ in rects(shown, "part")] == [("0.00%", "25.00%"), ("25.00%", "75.00%")]
    assert "".join(drawing(shown).find("ul").itertext()) == "a 50 25 %b 0 0 %c 150 75 %"  # type: ignore[union-attr]


def test_fills_that_are_used_are_there() -> None:
    assert set(re.findall(r'id="fill-(\w+)"', patterns())) == {"b", "c", "cut", "off"}
