"""Points with error bars, each named beside it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmtune.pages.axes import Frame, framed
from llmtune.pages.charts import Mark
from llmtune.pages.elements import Content, Html, element, joined
from llmtune.pages.numbers import counted
from llmtune.pages.series import Kind, shape

_NARROW = 270
"""Pixels of the narrowest plot: labels that don't touch there don't touch where it is wider."""
_LETTER, _LINE = 6.8, 15
"""Pixels of a letter across, and of a line down."""
_GAP = 10
LONGEST_LABEL = 24
"""Letters of a point's name at most; the rest is cut."""
_SHIFTS = (0, -15, 15, -30, 30, -45, 45, -60, 60, -75, 75, -90, 90)
_CAP = 4


@dataclass(frozen=True)
class Point:
    """Something with two values, one of them in an interval."""

    label: str
    x: float
    y: float
    low: float
    high: float
    """The ends of y's interval: nan for unknown, infinite for none."""
    kind: Kind
    tip: str = ""

    @property
    def is_known(self) -> bool:
        """Whether it has a place."""
        return math.isfinite(self.x) and math.isfinite(self.y)


@dataclass(frozen=True)
class _Box:
    left: float
    right: float
    top: float
    bottom: float

    def touches(self, other: "_Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


@dataclass(frozen=True)
class _Label:
    point: Point
    text: str
    shift: int
    is_right: bool


def scatter(title: str, points: Sequence[Point], frame: Frame, marks: Sequence[Mark] = ()) -> Html:
    """Points, their error bars and their names.

    An end of a bar beyond the axis is drawn as an arrow. Points without a place are left out. A name that would lie
    on others is left out too: the point says it when it is pointed at.

    Args:
        title: what is shown.
        points: what is drawn; earlier ones lie above.
        frame: the axes.
        marks: values of the y axis with a line and a label.
    """
    known = [point for point in points if point.is_known]
    said = "; ".join(f"{point.label}: {point.tip}" for point in known)
    bars = [_bar(point, frame) for point in reversed(known)]
    signs = [shape(point.kind, frame.across(point.x), frame.down(point.y), _told(point)) for point in reversed(known)]
    labels = [_drawn(label, frame) for label in _placed(known, frame)]
    return framed(title, f"{counted(len(known), 'point')}. {said}", frame, marks, bars, signs, labels)


def num_unnamed(points: Sequence[Point], frame: Frame) -> int:
    """How many of the points have no room for their name.

    Args:
        points: what is drawn.
        frame: the axes.
    """
    known = [point for point in points if point.is_known]
    return len(known) - len(list(_placed(known, frame)))


def _told(point: Point) -> str:
    return f"{point.label}: {point.tip}" if point.tip else point.label


def _bar(point: Point, frame: Frame) -> Html | None:
    if math.isnan(point.low) or math.isnan(point.high):
        return None
    x, low, high = frame.across(point.x), frame.down(point.low), frame.down(point.high)
    line = element("line", x1=x, x2=x, y1=high, y2=low, class_=f"error {point.kind.css}")
    ends: list[Content] = []
    for y, is_cut, away in ((high, point.high > frame.y.last, 1), (low, point.low < frame.y.first, -1)):
        path = f"M-{_CAP} {away * 6}L0 0L{_CAP} {away * 6}" if is_cut else f"M-{_CAP} 0H{_CAP}"
        kind = "cut" if is_cut else "cap"
        end = element("path", d=path, class_=f"error {kind} {point.kind.css}")
        ends.append(element("svg", end, x=x, y=y, overflow="visible"))
    return joined(line, ends)


def _placed(points: Sequence[Point], frame: Frame) -> Iterator[_Label]:
    """Where each label goes: beside its point, or as near to it as others leave room; nowhere if they leave none."""
    taken = [_sign_box(point, frame) for point in points]
    # What has a colour of its own is named first.
    for point in sorted(points, key=lambda point: (point.kind.place is None, frame.down(point.y))):
        text = point.label if len(point.label) <= LONGEST_LABEL else f"{point.label[: LONGEST_LABEL - 1]}…"
        own = _sign_box(point, frame)
        others = [box for box in taken if box != own]
        tried = [(shift, is_right) for shift in _SHIFTS for is_right in (True, False)]
        free = (
            (shift, is_right) for shift, is_right in tried if _fits(_box(own, text, shift, is_right), others, frame)
        )
        found = next(free, None)
        if found is not None:
            shift, is_right = found
            taken.append(_box(own, text, shift, is_right))
            yield _Label(point, text, shift, is_right)


def _sign_box(point: Point, frame: Frame) -> _Box:
    x, y = _NARROW * frame.x.place(point.x) / 100, frame.down(point.y)
    return _Box(x - 7, x + 7, y - 7, y + 7)


def _box(sign: _Box, text: str, shift: int, is_right: bool) -> _Box:
    x, y = (sign.left + sign.right) / 2, (sign.top + sign.bottom) / 2 + shift
    wide = _LETTER * len(text)
    left = x + _GAP if is_right else x - _GAP - wide
    return _Box(left, left + wide, y - _LINE / 2, y + _LINE / 2)


def _fits(box: _Box, taken: Sequence[_Box], frame: Frame) -> bool:
    inside = box.left >= 0 and box.right <= _NARROW and box.top >= 0 and box.bottom <= frame.bottom
    return inside and not any(box.touches(other) for other in taken)


def _drawn(label: _Label, frame: Frame) -> Html:
    """The text, and a thin line to its point where it had to move away."""
    point, x, y = label.point, frame.across(label.point.x), frame.down(label.point.y)
    side = 1 if label.is_right else -1
    lead = None
    if label.shift:
        path = element("path", d=f"M0 0L{side * (_GAP - 2)} {label.shift}", class_="lead-line")
        lead = element("svg", path, x=x, y=y, overflow="visible")
    anchor = "start" if label.is_right else "end"
    told = element("title", point.label) if label.text != point.label else None
    name = f"name {anchor}"
    return joined(lead, element("text", label.text, told, x=x, y=y + label.shift + 4, dx=side * _GAP, class_=name))
