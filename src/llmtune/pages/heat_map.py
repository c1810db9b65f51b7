"""Values of two things that vary, in a table whose cells are shaded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmtune.pages.elements import Content, Html, element, joined

NUM_SHADES = 5


@dataclass(frozen=True)
class Shaded:
    """A cell: its value decides the shade."""

    value: float
    text: str
    detail: str = ""


def heat_map(
    caption: str,
    names: tuple[str, str],
    labels: tuple[Sequence[str], Sequence[str]],
    cells: Mapping[tuple[int, int], Shaded],
) -> Html:
    """The table; the lowest value is darkest and outlined, a place without a cell says so.

    Args:
        caption: what it shows, for those who hear it.
        names: what varies from top to bottom, and from left to right.
        labels: the values of both.
        cells: by row and column.
    """
    values = [cell.value for cell in cells.values() if math.isfinite(cell.value)]
    low, high = min(values, default=math.nan), max(values, default=math.nan)
    across = element("th", names[1], scope="colgroup", colspan=len(labels[1]), class_="across")
    corner = element("th", names[0], scope="col", rowspan=2, class_="corner")
    heads = element("tr", *(element("th", label, scope="col") for label in labels[1]))
    rows = [
        element(
            "tr",
            element("th", label, scope="row"),
            *(_cell(cells.get((row, column)), low, high) for column in range(len(labels[1]))),
        )
        for row, label in enumerate(labels[0])
    ]
    head = element("thead", element("tr", corner, across), heads)
    inner = element("table", element("caption", caption), head, element("tbody", *rows), class_="heat")
    region = element("div", inner, class_="scroll", role="region", aria_label=caption, tabindex=0)
    return joined(region, _legend(low, high))


def shade(value: float, low: float, high: float) -> int:
    """Which of the shades a value has, the darkest for the lowest.

    Args:
        value: between `low` and `high`.
        low: the lowest of all.
        high: the highest.
    """
    share = (high - value) / (high - low) if high > low else 1.0
    return min(NUM_SHADES - 1, int(share * NUM_SHADES))


def _cell(cell: Shaded | None, low: float, high: float) -> Html:
    if cell is None:
        return element("td", "no run", class_="missing")
    detail = element("small", cell.detail) if cell.detail else None
    if not math.isfinite(cell.value):
        return element("td", cell.text, detail, class_="missing")
    lowest = cell.value == low
    text: Content = (element("b", cell.text), element("span", " lowest", class_="unseen")) if lowest else cell.text
    return element("td", text, detail, class_=f"h{shade(cell.value, low, high)}{' lowest' if lowest else ''}")


def _legend(low: float, high: float) -> Html:
    if not low < high:
        return Html()
    steps = [element("span", class_=f"h{place}") for place in range(NUM_SHADES)]
    parts = (element("span", f"{high:.4f}"), element("span", *steps, class_="steps"), element("span", f"{low:.4f}"))
    return element("p", *parts, class_="shades")
