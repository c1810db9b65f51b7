"""Which cell holds which value, what the lowest and the missing ones look like, and that text can be read."""

import math
import re
from importlib import resources
from xml.etree import ElementTree

import pytest

from llmtune.pages.heat_map import NUM_SHADES, Shaded, heat_map, shade

pytestmark = pytest.mark.fast

CELLS = {(0, 0): Shaded(2.0, "2.0000", "± 0.1"), (0, 1): Shaded(3.0, "3.0000"), (1, 1): Shaded(2.5, "2.5000")}


def table(cells: dict[tuple[int, int], Shaded]) -> ElementTree.Element:
    shown = heat_map("loss", ("rank <r>", "rate"), (["8", "16"], ["0.1", "0.2"]), cells)
    found = ElementTree.fromstring(f"<div>{shown}</div>").find("div/table")
    assert found is not None
    return found


def test_each_value_stands_in_its_row_and_column() -> None:
    rows = table(CELLS).findall("tbody/tr")
    assert [["".join(cell.itertext()) for cell in row] for row in rows] == [
        ["8", "2.0000 lowest± 0.1", "3.0000"],
        ["16", "no run", "2.5000"],
    ]
    assert [[cell.attrib.get("class") for cell in row][1:] for row in rows] == [
        ["h4 lowest", "h0"],
        ["missing", "h2"],
    ]
    heads = ["".join(head.itertext()) for head in table(CELLS).findall("thead/tr/th")]
    assert heads == ["rank <r>", "rate", "0.1", "0.2"]


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [(1, 1, 2, NUM_SHADES - 1), (2, 1, 2, 0), (1.5, 1, 2, 2), (1, 1, 1, NUM_SHADES - 1), (1.79, 1, 2, 1)],
)
def test_the_lowest_is_darkest(value: float, low: float, high: float, expected: int) -> None:
    assert shade(value, low, high) == expected


def test_a_value_that_is_not_finite_has_no_shade_and_is_not_the_lowest() -> None:
    cells = CELLS | {(1, 0): Shaded(math.nan, "NaN")}
    kinds = [cell.attrib["class"] for cell in table(cells).findall("tbody/tr/td")]
    assert kinds == ["h4 lowest", "h0", "missing", "h2"]
    assert [cell.attrib["class"] for cell in table({(0, 0): Shaded(math.nan, "NaN")}).findall("tbody/tr/td")] == [
        "missing"
    ] * 4


def luminance(colour: str) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    above, below = sorted((luminance(first), luminance(second)), reverse=True)
    return (above + 0.05) / (below + 0.05)


@pytest.mark.parametrize("form", [0, 1])
def test_text_on_every_shade_and_every_colour_on_paper_can_be_told(form: int) -> None:
    style = resources.files("llmtune.pages").joinpath("page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[form]))
    for place in range(NUM_SHADES):
        assert contrast(colours["ink"], colours[f"h{place}"]) >= 4.5
    for kind in ("s0", "s1", "s2", "s3", "s4", "s5", "rest"):
        assert contrast(colours[kind], colours["paper"]) >= 3, kind
    assert contrast("#777777", "#ffffff") < 4.5, "the measure itself"
