"""Where lines and bands run, and that they break where nothing is known."""

import math
import re
from xml.etree import ElementTree

import pytest

from llmtune.pages.axes import Frame
from llmtune.pages.charts import Axis
from llmtune.pages.curves import Curve, Spread, curves
from llmtune.pages.series import Kind

pytestmark = pytest.mark.fast

FRAME = Frame(Axis(0, 10, ""), Axis(0, 4, ""), "steps", "loss", height=200)


def flat(*values: tuple[float, float]) -> list[Spread]:
    return [Spread(x, y, y, y) for x, y in values]


def drawing(*drawn: Curve) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{curves('loss', drawn, FRAME)}</div>")


def paths(root: ElementTree.Element, kind: str) -> list[str]:
    return [path.attrib["d"] for path in root.iter("path") if path.attrib.get("class", "").split()[:1] == [kind]]


def test_a_line_and_its_band_run_through_their_values() -> None:
    spreads = [Spread(0, 2, 1, 3), Spread(10, 1, 0.5, 1)]
    root = drawing(Curve("a", Kind(0), spreads))
    # 1000 units each way: x * 100, (4 - y) * 250
    assert paths(root, "curve") == ["M0.0 500.0L1000.0 750.0"]
    assert paths(root, "band") == ["M0.0 250.0L1000.0 750.0L1000.0 875.0L0.0 750.0Z"]
    inner = next(svg for svg in root.iter("svg") if svg.attrib.get("viewBox"))
    assert inner.attrib["viewBox"] == "0 0 1000 1000" and inner.attrib["preserveAspectRatio"] == "none"
    assert (inner.attrib["y"], inner.attrib["height"], inner.attrib["width"]) == ("8", "200", "100%")


def test_a_line_breaks_where_a_value_is_not_finite_and_goes_on_behind() -> None:
    line = flat((0, 4), (2, 2), (4, math.nan), (6, 1), (8, 0))
    assert paths(drawing(Curve("a", Kind(0), line)), "curve") == ["M0.0 0.0L200.0 500.0M600.0 750.0L800.0 1000.0"]
    assert paths(drawing(Curve("a", Kind(0), flat((0, math.nan)))), "curve") == []


def test_one_seed_has_no_band() -> None:
    assert paths(drawing(Curve("a", Kind(0), flat((0, 1), (1, 2)))), "band") == []


def test_what_lies_above_the_axis_is_drawn_beyond_it_and_cut_off() -> None:
    (path,) = paths(drawing(Curve("a", Kind(0), flat((0, 8), (10, 1e9)))), "curve")
    assert path == "M0.0 -1000.0L1000.0 -9000.0"


def test_signs_stand_at_their_values_with_the_range_over_seeds() -> None:
    points = [Spread(5, 1, 0.5, 2), Spread(10, 9, 9, 9)]
    root = drawing(Curve("a", Kind(2), flat((0, 1)), points))
    chart = root.findall("div/svg")[1]
    found = [svg for svg in chart.iter("svg") if svg.attrib.get("class", "").startswith("dot")]
    assert [(svg.attrib["x"], svg.attrib["y"]) for svg in found] == [("50.00%", "158")]  # 8 + 50 * (4 - 1)
    bars = [line.attrib for line in chart.iter("line") if line.attrib["class"].startswith("error")]
    assert [(bar["x1"], bar["y1"], bar["y2"]) for bar in bars] == [("50.00%", "108", "183")]


def test_the_legend_names_every_line_and_those_who_do_not_see_are_told() -> None:
    root = drawing(Curve("<full>", Kind(0), flat((0, 3), (9, 1))), Curve("lora", Kind(None), flat((0, math.nan))))
    assert ["".join(item.itertext()) for item in root.findall("ul/li")] == ["<full>", "lora"]
    said = root.findall("div/svg")[1].findtext("desc")
    assert said == "<full>: from 3.0000 at 0 to 1.0000 at 9; lora: no line"
    assert re.findall(
        r"s0|rest", " ".join(line.attrib["class"] for line in root.iter("line") if "curve" in line.attrib["class"])
    )
