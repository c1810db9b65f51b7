"""Where dots, the ends of intervals and the line that they are held against stand."""

import math
from xml.etree import ElementTree

import pytest

from llmtune.pages.charts import Mark
from llmtune.pages.intervals import Ranged, interval_axis, intervals
from llmtune.pages.series import Kind

pytestmark = pytest.mark.fast


def ranged(label: str, value: float, low: float, high: float, kind: int = 0) -> Ranged:
    return Ranged(label, value, low, high, f"{value:.2f}", Kind(kind), "3 seeds")


def rows(entries: list[Ranged], *marks: Mark) -> list[ElementTree.Element]:
    return ElementTree.fromstring(intervals("loss", entries, marks, "nats")).findall("li")


def line(row: ElementTree.Element, kind: str) -> tuple[str, str] | None:
    found = [line for line in row.iter("line") if line.attrib["class"].startswith(kind)]
    return (found[0].attrib["x1"], found[0].attrib["x2"]) if found else None


def test_dots_intervals_and_the_line_stand_at_their_values() -> None:
    # Shown are 1 to 2, with 0.06 of room at either end: a value lies at (value - 0.94) / 1.12.
    head, first, second, foot = rows([ranged("a", 1.5, 1.0, 1.75), ranged("b", 1.25, 1.2, 1.3, 1)], Mark(2.0, "base 2"))
    assert line(first, "error s0") == ("5.36%", "72.32%")
    assert line(second, "error s1") == ("23.21%", "32.14%")
    dots = [
        svg.attrib["x"] for row in (first, second) for svg in row.iter("svg") if "dot" in svg.attrib.get("class", "")
    ]
    assert dots == ["50.00%", "27.68%"]
    assert line(first, "mark") == line(second, "mark") == ("94.64%", "94.64%")
    assert head.findtext("svg/text") == "base 2"
    assert "1.2" in [text.text for text in foot.iter("text")]


def test_an_entry_is_told_in_words() -> None:
    _, row, _ = rows([ranged("<a>", 1.5, 1.0, 1.75)], Mark(2.0, "base"))
    svg = row.find("svg")
    assert svg is not None and svg.findtext("title") == "loss: <a>" and svg.findtext("desc") == "1.50 3 seeds"
    assert [part.text for part in row.iter("div")] == ["<a>", "1.50"] and row.findtext("div/small") == "3 seeds"


def test_a_line_far_off_is_only_named() -> None:
    entries = [ranged("a", 1.5, 1.4, 1.6), ranged("b", 1.6, 1.5, 1.7)]
    head, row, *_ = rows(entries, Mark(9.0, "base 9"))
    assert head.findtext("svg/text") == "base 9 →" and line(row, "mark") is None
    assert interval_axis(entries, [Mark(9.0, "")], "").last < 2
    head, *_ = rows(entries, Mark(-9.0, "base"))
    assert head.findtext("svg/text") == "← base"


def test_an_interval_without_end_is_cut_off_with_an_arrow_and_does_not_stretch_the_axis() -> None:
    entries = [ranged("a", 1.5, 1.4, 1.6), ranged("b", 1.7, -math.inf, 400.0), ranged("c", 1.9, 1.8, 2.0)]
    axis = interval_axis(entries, [], "")
    assert axis.first > 1.3 and axis.last < 4  # not 400
    _, row, _, _ = rows(entries)
    assert line(row, "error") == ("0.00%", "100.00%")
    assert [path.attrib["class"] for path in row.iter("path") if "error" in path.attrib.get("class", "")] == [
        "error cut s0",
        "error cut s0",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_has_no_dot(value: float) -> None:
    first, _, _ = rows([ranged("a", value, math.nan, math.nan), ranged("b", 1.0, math.nan, math.nan)])
    assert [svg for svg in first.iter("svg") if "dot" in svg.attrib.get("class", "")] == []
    assert line(first, "error") is None
    assert len(rows([ranged("a", value, math.nan, math.nan)])) == 2  # nothing at all is finite


def test_a_limit_is_drawn_as_one_and_each_name_has_a_line_of_its_own() -> None:
    head, row, _ = rows([ranged("a", 0.5, 0.0, 1.0)], Mark(0.0, "full"), Mark(0.5, "good enough", is_limit=True))
    drawn = [(part.attrib["class"], part.attrib["x1"]) for part in row.iter("line") if "mark" in part.attrib["class"]]
    assert drawn == [("mark", "5.36%"), ("mark limit", "50.00%")]
    names = [(text.text, text.attrib["y"], text.attrib["class"]) for text in head.iter("text")]
    assert names == [("full", "13", "mark start"), ("good enough", "31", "mark limit middle")]


def test_a_line_far_off_can_be_kept_in_sight() -> None:
    entries = [ranged("a", 1.5, 1.4, 1.6)]
    assert interval_axis(entries, [Mark(0.0, "")], "").first > 1
    assert interval_axis(entries, [Mark(0.0, "")], "", keep_marks=True).first == pytest.approx(-0.06 * 1.6)
