"""Where points, the ends of their bars and their names stand, against places worked out by hand."""

import math
from xml.etree import ElementTree

import pytest

from llmtune.pages.axes import Frame
from llmtune.pages.charts import Axis
from llmtune.pages.scatter import Point, num_unnamed, scatter
from llmtune.pages.series import NUM_KINDS, Kind, key, kinds

pytestmark = pytest.mark.fast

FRAME = Frame(Axis(0, 10, ""), Axis(0, 2, ""), "", "", height=200)


def drawing(*points: Point, frame: Frame = FRAME) -> ElementTree.Element:
    markup = ElementTree.fromstring(f"<div>{scatter('t', points, frame)}</div>")
    return markup.findall("div/svg")[1]


def signs(chart: ElementTree.Element) -> dict[str, tuple[str, str]]:
    """Class to place of each sign."""
    found = [svg for svg in chart.iter("svg") if svg.attrib.get("class", "").startswith("dot")]
    return {svg.attrib["class"]: (svg.attrib["x"], svg.attrib["y"]) for svg in found}


def bars(chart: ElementTree.Element) -> list[tuple[str, ...]]:
    lines = [line for line in chart.iter("line") if line.attrib["class"].startswith("error")]
    return [tuple(line.attrib[name] for name in ("x1", "x2", "y1", "y2", "class")) for line in lines]


def test_points_and_the_ends_of_their_bars_stand_at_their_values() -> None:
    chart = drawing(Point("a", x=2.5, y=1.0, low=0.5, high=1.75, kind=Kind(0)), Point("b", 10, 2, 1.9, 2, Kind(None)))
    # 8 pixels above the plot, 100 pixels a unit: y = 8 + 100 * (2 - value)
    assert signs(chart) == {"dot s0": ("25.00%", "108"), "dot rest": ("100.00%", "8")}
    assert bars(chart) == [
        ("100.00%", "100.00%", "8", "18", "error rest"),
        ("25.00%", "25.00%", "33", "158", "error s0"),
    ]


def test_an_end_beyond_the_axis_is_an_arrow_and_an_unknown_one_no_bar() -> None:
    chart = drawing(Point("a", 5, 1, -math.inf, 1.5, Kind(1)))
    assert bars(chart) == [("50.00%", "50.00%", "58", "208", "error s1")]
    ends = [path.attrib["class"] for path in chart.iter("path") if path.attrib.get("class", "").startswith("error")]
    assert ends == ["error cap s1", "error cut s1"]
    unknown = drawing(Point("a", 5, 1, math.nan, math.nan, Kind(1)))
    assert bars(unknown) == [] and len(signs(unknown)) == 1


@pytest.mark.parametrize(("x", "y"), [(math.nan, 1), (1, math.inf)])
def test_a_point_without_a_place_is_left_out(x: float, y: float) -> None:
    chart = drawing(Point("gone", x, y, 0, 1, Kind(0)), Point("there", 1, 1, 0, 1, Kind(1)))
    assert list(signs(chart)) == ["dot s1"]
    assert "gone" not in "".join(chart.itertext())


def names(chart: ElementTree.Element) -> list[tuple[str, float, float, int]]:
    """Text, left and right end on a plot of 270 pixels, and middle of each name."""
    found = []
    for text in chart.iter("text"):
        if text.attrib["class"].startswith("name"):
            x, shift = 2.7 * float(text.attrib["x"].rstrip("%")), float(text.attrib["dx"])
            wide = 6.8 * len(str(text.text))
            left = x + shift - (0 if "start" in text.attrib["class"] else wide)
            found.append((str(text.text), left, left + wide, int(float(text.attrib["y"])) - 4))
    return found


def test_names_do_not_touch_each_other_where_points_crowd() -> None:
    crowd = [Point(f"lora rank={2**n}", 5 + n / 10, 1 + n / 100, 1, 1, Kind(n)) for n in range(6)]
    shown = names(drawing(*crowd))
    assert len(shown) == 6
    for place, (_, left, right, middle) in enumerate(shown):
        assert left >= 0 and right <= 270
        for _, other_left, other_right, other_middle in shown[:place]:
            assert abs(middle - other_middle) >= 15 or left >= other_right or other_left >= right
    assert "lead-line" in {path.attrib.get("class") for path in drawing(*crowd).iter("path")}


def test_names_that_have_no_room_are_left_out_the_coloured_ones_last() -> None:
    crowd = [Point(f"lora rank={n}", 5, 1, 1, 1, Kind(n - 24 if n >= 24 else None)) for n in range(30)]
    shown = names(drawing(*crowd))
    assert 6 <= len(shown) < 30 and {f"lora rank={n}" for n in range(24, 30)} <= {text for text, *_ in shown}
    assert num_unnamed(crowd, FRAME) == 30 - len(shown)
    boxes = [(left, right, middle) for _, left, right, middle in shown]
    for place, (left, right, middle) in enumerate(boxes):
        for other_left, other_right, other in boxes[:place]:
            assert abs(middle - other) >= 15 or left >= other_right or other_left >= right
    assert num_unnamed([*crowd[:1], Point("gone", math.nan, 1, 1, 1, Kind(0))], FRAME) == 0


def test_a_name_stands_beside_its_point_and_a_long_one_is_cut() -> None:
    alone = names(drawing(Point("lora", 2, 1, 1, 1, Kind(0))))
    assert alone == [("lora", pytest.approx(54 + 10), pytest.approx(54 + 10 + 27.2), 108)]
    at_the_right = names(drawing(Point("lora", 9.9, 1, 1, 1, Kind(0))))
    assert at_the_right[0][2] == pytest.approx(267.3 - 10)
    long = drawing(Point("x" * 40, 2, 1, 1, 1, Kind(0)))
    assert [text for text, *_ in names(long)] == ["x" * 23 + "…"]
    assert "x" * 40 in [title.text for title in long.iter("title")]


def test_hostile_names_stay_text() -> None:
    hostile = '</svg><script>alert("x")</script>'
    chart = drawing(Point(hostile, 2, 1, 1, 1, Kind(0), tip=hostile))
    assert "script" not in {part.tag for part in chart.iter()}
    assert hostile in "".join(chart.itertext())


def test_the_first_things_have_each_a_colour_and_a_shape() -> None:
    looks = kinds(NUM_KINDS + 2)
    assert [look.css for look in looks] == ["s0", "s1", "s2", "s3", "s4", "s5", "rest", "rest"]
    paths = [ElementTree.fromstring(key(look)).find("svg/path").attrib["d"] for look in looks]  # type: ignore[union-attr]
    assert len(set(paths)) == NUM_KINDS + 1
