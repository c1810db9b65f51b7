"""A plot's two axes: what they span, their round values, and the frame that charts draw into."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmtune.pages.charts import Axis, Mark
from llmtune.pages.elements import Content, Html, element, joined
from llmtune.pages.numbers import number

_ROW = 18
_TOP = 8
_LEFT = 52
"""Pixels left of the plot, for the values of its y axis."""
_MOST_DIGITS = 8
_ROOM = 0.06
"""Share of the span that is left free at either end."""


@dataclass(frozen=True)
class Frame:
    """What a chart is drawn into: x in per cent of the width, y in pixels."""

    x: Axis
    y: Axis
    x_name: str
    y_name: str
    height: int = 260

    def across(self, value: float) -> str:
        """Where a value lies from left to right."""
        return f"{self.x.place(value):.2f}%"

    def down(self, value: float) -> float:
        """Pixels from the top; values beyond the axis lie at its end."""
        return _TOP + self.height * (1 - self.y.place(value) / 100)

    @property
    def top(self) -> int:
        """Pixels above the plot."""
        return _TOP

    @property
    def bottom(self) -> int:
        """Where the x axis lies, in pixels from the top."""
        return _TOP + self.height


def axis_for(values: Iterable[float], unit: str = "", *, from_zero: bool = False) -> Axis:
    """An axis with all finite values in sight and a little room beside them.

    Args:
        values: what is shown.
        unit: what the axis counts.
        from_zero: whether it begins at 0.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Axis(0.0, 1.0, unit)
    low, high = (min(0.0, *known) if from_zero else min(known)), max(known)
    span = high - low or abs(high) / 10 or 1.0
    return Axis(low if from_zero else low - _ROOM * span, high + _ROOM * span, unit)


def tick_labels(axis: Axis) -> list[tuple[float, str]]:
    """An axis' round values, each as text with as many digits as they need."""
    ticks = axis.ticks()
    size = max([abs(tick) for tick in ticks] or [1.0])
    digits = next(
        (count for count in range(_MOST_DIGITS) if all(abs(round(tick, count) - tick) < 1e-9 * size for tick in ticks)),
        _MOST_DIGITS,
    )
    return [(tick, number(tick + 0.0, digits).replace("-", "\N{MINUS SIGN}")) for tick in ticks]


def framed(title: str, described: str, frame: Frame, marks: Sequence[Mark], *content: Content) -> Html:
    """A chart with its axes; what it shows is told to those who don't see it.

    Args:
        title: what is shown.
        described: what is to be seen in it, in a sentence.
        frame: the axes.
        marks: values of the y axis with a line and a label.
        content: what is drawn, in per cent across and pixels down.
    """
    height = frame.bottom + 2 * _ROW + 4
    levels = [(frame.down(value), text) for value, text in tick_labels(frame.y)]
    left = [element("text", text, x=_LEFT - 8, y=y + 4, class_="tick end") for y, text in levels]
    side = element("svg", *left, width=_LEFT, height=height, class_="chart side", aria_hidden="true")
    grid = [element("line", x1="0", x2="100%", y1=y, y2=y, class_="grid") for y, _ in levels]
    base = element("line", x1="0", x2="100%", y1=frame.bottom, y2=frame.bottom, class_="base")
    unit = element("text", frame.x_name, x="100%", y=frame.bottom + 2 * _ROW, class_="tick end")
    labels = (element("title", title), element("desc", described))
    drawn = (*labels, grid, base, axis_ticks(frame.x, frame.bottom), unit, [_mark(mark, frame) for mark in marks])
    chart = element("svg", *drawn, *content, width="100%", height=height, role="img", class_="chart")
    name = element("p", frame.y_name, class_="axis-name")
    return joined(name, element("div", side, chart, class_="plot"))


def axis_ticks(axis: Axis, y: float) -> list[Html]:
    """The round values of an x axis, beneath it.

    Args:
        axis: the axis.
        y: where it lies, in pixels.
    """
    return [_tick(axis.place(value), text, y) for value, text in tick_labels(axis)]


def _tick(place: float, text: str, y: float) -> Html:
    side = "start" if place < 4 else "end" if place > 96 else "middle"
    line = element("line", x1=f"{place:.2f}%", x2=f"{place:.2f}%", y1=y, y2=y + 4, class_="base")
    return joined(line, element("text", text, x=f"{place:.2f}%", y=y + 17, class_=f"tick {side}"))


def _mark(mark: Mark, frame: Frame) -> Html | None:
    """A line across at a value, named at its right; none where it is out of sight."""
    if not frame.y.first <= mark.value <= frame.y.last:
        return None
    y = frame.down(mark.value)
    line = element("line", x1="0", x2="100%", y1=y, y2=y, class_="mark")
    return joined(line, element("text", mark.label, x="100%", y=y - 5, class_="mark end"))
