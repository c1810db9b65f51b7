"""Lines with bands over one axis, such as losses by step over several seeds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmtune.pages.axes import Frame, framed
from llmtune.pages.charts import Axis
from llmtune.pages.elements import Content, Html, element, joined
from llmtune.pages.series import Kind, key, shape

_SIDE = 1000
"""Units that a line's drawing is wide and high; it is stretched to the plot."""


@dataclass(frozen=True)
class Spread:
    """A value at a place of the axis, and the least and the greatest there."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """What is drawn of one thing."""

    label: str
    kind: Kind
    line: Sequence[Spread]
    """A line with its band; where a value isn't finite, it breaks."""
    points: Sequence[Spread] = field(default_factory=tuple)
    """Signs with a bar from the least to the greatest."""


def curves(title: str, drawn: Sequence[Curve], frame: Frame) -> Html:
    """Lines, their bands and signs, with a legend above; what goes beyond the axes is cut off.

    Args:
        title: what is shown.
        drawn: the lines; earlier ones lie above.
        frame: the axes.
    """
    layers = list(reversed(drawn))
    bands = [
        element("path", d=path, class_=f"band {curve.kind.css}") for curve in layers if (path := _band(curve, frame))
    ]
    lines = [
        element("path", d=path, class_=f"curve {curve.kind.css}") for curve in layers if (path := _line(curve, frame))
    ]
    box = {"x": 0, "y": frame.top, "width": "100%", "height": frame.height, "viewBox": f"0 0 {_SIDE} {_SIDE}"}
    inner = element("svg", bands, lines, **box, preserveAspectRatio="none")
    points = [_point(point, curve.kind, frame) for curve in layers for point in curve.points]
    said = "; ".join(f"{curve.label}: {_described(curve)}" for curve in drawn)
    legend = element(
        "ul", *(element("li", key(curve.kind, with_line=True), curve.label) for curve in drawn), class_="legend"
    )
    return joined(legend, framed(title, said, frame, (), inner, points))


def _described(curve: Curve) -> str:
    known = [spread for spread in curve.line if math.isfinite(spread.y)]
    if not known:
        return "no line"
    return f"from {known[0].y:.4f} at {known[0].x:g} to {known[-1].y:.4f} at {known[-1].x:g}"


def _line(curve: Curve, frame: Frame) -> str:
    """A path through the values, begun anew behind each that isn't finite."""
    parts = [
        "M" + "L".join(_place(spread.x, spread.y, frame) for spread in piece) + ("h0.1" if len(piece) == 1 else "")
        for piece in _pieces(curve.line)
    ]
    return "".join(parts)


def _band(curve: Curve, frame: Frame) -> str:
    """A closed path around what lies between the least and the greatest; none where they are everywhere the same."""
    if not any(spread.high > spread.low for spread in curve.line):
        return ""
    parts: list[str] = []
    for piece in _pieces(curve.line):
        above = [_place(spread.x, spread.high, frame) for spread in piece]
        below = [_place(spread.x, spread.low, frame) for spread in reversed(piece)]
        parts.append(f"M{'L'.join(above + below)}Z")
    return "".join(parts)


def _pieces(spreads: Sequence[Spread]) -> Iterator[list[Spread]]:
    piece: list[Spread] = []
    for spread in spreads:
        if all(map(math.isfinite, (spread.y, spread.low, spread.high))):
            piece.append(spread)
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _place(x: float, y: float, frame: Frame) -> str:
    return f"{_SIDE * _share(frame.x, x):.1f} {_SIDE * (1 - _share(frame.y, y)):.1f}"


def _share(axis: Axis, value: float) -> float:
    """Where a value lies between an axis' ends; beyond them below 0 or above 1, at most 10 spans away."""
    return min(10.0, max(-10.0, (value - axis.first) / (axis.last - axis.first)))


def _point(point: Spread, kind: Kind, frame: Frame) -> Content:
    if not math.isfinite(point.y) or not frame.y.first <= point.y <= frame.y.last:
        return None
    x = frame.across(point.x)
    bar = None
    if math.isfinite(point.low) and math.isfinite(point.high) and point.high > point.low:
        ends = {"y1": frame.down(point.high), "y2": frame.down(point.low)}
        bar = element("line", x1=x, x2=x, **ends, class_=f"error {kind.css}")
    return joined(bar, shape(kind, x, frame.down(point.y), f"{point.y:.4f} at {point.x:g}"))
