"""Values in their intervals beneath each other, against lines across all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.pages.axes import axis_for, axis_ticks
from llmtune.pages.charts import Axis, Mark
from llmtune.pages.elements import Html, element, joined
from llmtune.pages.series import Kind, shape

_HEIGHT = 30
_NAME = 18
_SIDE = 35
"""Per cent of the width from which a name has room on either side of its line."""
_MIDDLE = _HEIGHT / 2
_CAP = 5
_FAR = 3
"""Times the span of all intervals from which the line is only named at the border."""


@dataclass(frozen=True)
class Ranged:
    """A value with the ends of its interval."""

    label: str
    value: float
    low: float
    high: float
    """nan: unknown; infinite: none."""
    text: str
    """The same in words."""
    kind: Kind
    detail: str = ""


def intervals(
    title: str, entries: Sequence[Ranged], marks: Sequence[Mark], unit: str, *, keep_marks: bool = False
) -> Html:
    """A line an entry: its name, its dot and interval on a common axis, its value in words.

    Args:
        title: what is shown.
        entries: what is drawn, from top to bottom.
        marks: values that all are held against; those beyond the axis are only named.
        unit: what the axis counts.
        keep_marks: whether the axis shows the marks however far off they lie.
    """
    axis = interval_axis(entries, marks, unit, keep_marks=keep_marks)
    head = element("li", element("div", ""), _header(marks, axis), element("div", ""), class_="header")
    rows = [_row(title, entry, marks, axis) for entry in entries]
    scale = (axis_ticks(axis, 1), element("text", unit, x="100%", y=36, class_="tick end"))
    foot = element("svg", *scale, width="100%", height=40, class_="chart", aria_hidden="true")
    last = element("li", element("div", ""), foot, element("div", ""), class_="footer")
    return element("ul", head if marks else None, *rows, last, class_="intervals")


def interval_axis(entries: Sequence[Ranged], marks: Sequence[Mark], unit: str, *, keep_marks: bool = False) -> Axis:
    """The axis that shows every value; wide intervals are cut off where they would press the others together.

    Args:
        entries: what is drawn.
        marks: brought into sight unless they lie far off.
        unit: what the axis counts.
        keep_marks: whether also those that lie far off.
    """
    values = [entry.value for entry in entries if math.isfinite(entry.value)]
    ends = sorted(abs(end - entry.value) for entry in entries for end in (entry.low, entry.high) if math.isfinite(end))
    spread = max(values) - min(values) if values else 0.0
    most = 3 * max(spread, ends[len(ends) // 2] if ends else 0.0)
    shown = values + [
        min(max(end, entry.value - most), entry.value + most)
        for entry in entries
        for end in (entry.low, entry.high)
        if math.isfinite(end) and math.isfinite(entry.value)
    ]
    span = max(shown) - min(shown) if shown else 0.0
    near = [mark.value for mark in marks if keep_marks or _is_near(mark.value, shown, span)]
    return axis_for([*shown, *near], unit)


def _is_near(value: float, shown: Sequence[float], span: float) -> bool:
    return any(abs(value - other) <= _FAR * (span or abs(value)) for other in shown)


def _header(marks: Sequence[Mark], axis: Axis) -> Html:
    """The lines' names, above them."""
    names = [_name(mark, axis, _NAME * place + 13) for place, mark in enumerate(marks)]
    lines = [_line(mark, axis, _NAME * (place + 1), _NAME * len(marks)) for place, mark in enumerate(marks)]
    return element("svg", lines, names, width="100%", height=_NAME * len(marks), class_="chart", aria_hidden="true")


def _name(mark: Mark, axis: Axis, y: float) -> Html:
    kind = "mark limit" if mark.is_limit else "mark"
    if not axis.first <= mark.value <= axis.last:
        is_right = mark.value > axis.last
        text, x, side = (f"{mark.label} →", "100%", "end") if is_right else (f"← {mark.label}", "0", "start")
        return element("text", text, x=x, y=y, class_=f"{kind} {side}")
    place = axis.place(mark.value)
    side = "start" if place < _SIDE else "end" if place > 100 - _SIDE else "middle"
    return element("text", mark.label, x=f"{place:.2f}%", y=y, class_=f"{kind} {side}")


def _line(mark: Mark, axis: Axis, top: float, bottom: float) -> Html | None:
    if not axis.first <= mark.value <= axis.last:
        return None
    x = f"{axis.place(mark.value):.2f}%"
    return element("line", x1=x, x2=x, y1=top, y2=bottom, class_="mark limit" if mark.is_limit else "mark")


def _row(title: str, entry: Ranged, marks: Sequence[Mark], axis: Axis) -> Html:
    labels = (element("title", f"{title}: {entry.label}"), element("desc", f"{entry.text} {entry.detail}".strip()))
    track = element("line", x1="0", x2="100%", y1=_MIDDLE, y2=_MIDDLE, class_="grid")
    lines = [_line(mark, axis, 0, _HEIGHT) for mark in marks]
    bar = _bar(entry, axis)
    dot = shape(entry.kind, f"{axis.place(entry.value):.2f}%", _MIDDLE) if math.isfinite(entry.value) else None
    parts = (*labels, track, lines, bar, dot)
    drawn = element("svg", *parts, width="100%", height=_HEIGHT, role="img", class_="chart")
    detail = element("small", entry.detail) if entry.detail else None
    return element(
        "li", element("div", entry.label, class_="label"), drawn, element("div", entry.text, detail, class_="told")
    )


def _bar(entry: Ranged, axis: Axis) -> Html | None:
    if not math.isfinite(entry.value) or math.isnan(entry.low) or math.isnan(entry.high):
        return None
    low, high = f"{axis.place(entry.low):.2f}%", f"{axis.place(entry.high):.2f}%"
    ends = [
        (low, entry.low < axis.first, 1),
        (high, entry.high > axis.last, -1),
    ]
    line = element("line", x1=low, x2=high, y1=_MIDDLE, y2=_MIDDLE, class_=f"error {entry.kind.css}")
    return joined(line, [_end(x, is_cut, away, entry.kind) for x, is_cut, away in ends])


def _end(x: str, is_cut: bool, away: int, kind: Kind) -> Html:
    """The end of an interval: a short line across, or an arrow where it goes on."""
    path = f"M{away * 6} -{_CAP}L0 0L{away * 6} {_CAP}" if is_cut else f"M0 -{_CAP}V{_CAP}"
    drawn = element("path", d=path, class_=f"error {'cut' if is_cut else 'cap'} {kind.css}")
    return element("svg", drawn, x=x, y=_MIDDLE, overflow="visible")
