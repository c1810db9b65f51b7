"""Charts as inline SVG. Places across are per cents of the width: a chart fits any screen and its text keeps its size.

Bars are filled by class (`page.css`), with a pattern where a colour alone would tell two things apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmtune.pages.elements import Content, Html, element, joined
from llmtune.pages.numbers import number, percent

_ROW = 18
"""Pixels of a line of text."""
_MOST_TICKS = 7
_FAR = 2
"""Times the last bar's place from which a mark is only named at the border."""


@dataclass(frozen=True)
class Mark:
    """A line across a histogram at a value of its axis."""

    value: float
    label: str
    is_limit: bool = False
    """Whether what lies beyond it is drawn as cut off."""


@dataclass(frozen=True)
class Share:
    """A part of a whole, or a bar of a chart."""

    label: str
    value: float
    kind: str = "a"
    """Fill: `a` to `d`, or `off` for what doesn't count."""


@dataclass(frozen=True)
class Bins:
    """How many values there are between borders."""

    edges: Sequence[float]
    """Borders, one more than there are counts."""
    counts: Sequence[int]
    what: str
    """What is counted, such as rows."""


@dataclass(frozen=True)
class Axis:
    """What a histogram is drawn over."""

    first: float
    last: float
    unit: str
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, in per cent of the width; within 0 and 100."""
        first, last, value = (math.log2(max(1, x)) if self.is_log else x for x in (self.first, self.last, value))
        return 100 * min(1.0, max(0.0, (value - first) / (last - first))) if last > first else 0.0

    def ticks(self) -> list[float]:
        """Round values across the axis, at most seven."""
        if self.is_log:
            return _powers(self.first, self.last)
        step = _round_step((self.last - self.first) / (_MOST_TICKS - 1))
        start = math.ceil(self.first / step - 1e-9)
        return [step * number for number in range(start, math.floor(self.last / step + 1e-9) + 1)]


def axis_over(series: Sequence[tuple[Sequence[float], Sequence[int]]], marks: Sequence[Mark], unit: str) -> Axis:
    """The axis that shows every bar that isn't empty, and marks that are not far off: by doublings where bars widen.

    Args:
        series: borders of bars, and how many there are between each border and the next; a pair a chart.
        marks: what shall be in sight, unless the bars would be narrow for it.
        unit: what the axis counts.
    """
    spans = [(pair, size) for edges, counts in series for pair, size in zip(pairwise(edges), counts, strict=True)]
    seen = [x for pair, size in spans if size for x in pair] or [0, 1]
    seen += [mark.value for mark in marks if mark.value <= _FAR * max(seen)]
    widths = [right - left for (left, right), _ in spans] or [1]
    is_log = max(widths) > 4 * min(widths)
    first, last = min(seen), max(seen)
    if is_log:
        return Axis(max(1, first), max(last, 2 * max(1, first)), unit, True)
    return Axis(min(first, 0) if first < last / 3 else first, last if last > first else first + 1, unit)


def histogram(title: str, bins: Bins, axis: Axis, marks: Sequence[Mark] = (), height: int = 120) -> Html:
    """How often values fall between borders, with marked lines.

    Args:
        title: what is shown.
        bins: the bars.
        axis: what is drawn over; charts above each other share one.
        marks: lines with a label each; beyond the one that is a limit bars are drawn as cut off.
        height: pixels of the highest bar.
    """
    top = _ROW * (len(marks) + 1)
    most = max([*bins.counts, 1])
    limit = min((mark.value for mark in marks if mark.is_limit), default=math.inf)
    bars: list[Content] = []
    for (left, right), size in zip(pairwise(bins.edges), bins.counts, strict=True):
        if not size:
            continue
        start, end, tall = axis.place(left), axis.place(right), max(1.0, height * size / most)
        kind = "cut" if left >= limit else "a"
        tip = element("title", f"{number(left)} to {number(right)} {axis.unit}: {number(size)} {bins.what}")
        box = {"x": f"{start:.2f}%", "y": top + height - tall, "width": f"{max(0.3, end - start):.2f}%", "height": tall}
        bars.append(element("rect", tip, **box, class_=f"bar {kind}"))
    grid, base = (
        element("line", x1="0", x2="100%", y1=y, y2=y, class_=kind)
        for y, kind in ((top, "grid"), (top + height, "base"))
    )
    lines = [_mark(mark, axis, row, top + height) for row, mark in enumerate(sorted(marks, key=lambda m: m.value))]
    ticks = [_tick(value, axis, top + height) for value in axis.ticks()]
    unit = element("text", axis.unit, x="100%", y=top + height + 2 * _ROW, class_="tick end")
    label = element("text", f"{number(most)} {bins.what}", x="0", y=top - 4, class_="count")
    said = [f"{number(sum(bins.counts))} {bins.what}, at most {number(most)} in a bar", *(mark.label for mark in marks)]
    drawn = (grid, bars, base, ticks, unit, lines, label)
    return _drawing(title, f"{'; '.join(said)}.", top + height + 2 * _ROW + 4, *drawn)


def bars(shares: Sequence[Share]) -> Html:
    """A bar for each of several counts, its name and count above it; the longest bar takes the whole width."""
    most = max([share.value for share in shares] or [1])
    return element("ul", *(_bar(share, most) for share in shares), class_="bars")


def stacked(title: str, shares: Sequence[Share], unit: str) -> Html:
    """The parts of a whole in one bar, with a legend of each part's count and share.

    Args:
        title: what the whole is.
        shares: the parts, drawn from left to right.
        unit: what they count.
    """
    whole = sum(share.value for share in shares) or 1
    drawn, start = [], 0.0
    for share in shares:
        wide = 100 * share.value / whole
        tip = element("title", f"{share.label}: {number(share.value)} {unit}, {percent(share.value / whole)}")
        box = {"x": f"{start:.2f}%", "y": 0, "width": f"{wide:.2f}%", "height": 28}
        drawn.append(element("rect", tip, **box, class_=f"bar part {share.kind}") if share.value else None)
        start += wide
    described = ", ".join(f"{share.label}: {number(share.value)} {unit}" for share in shares)
    legend = element("ul", *(_key(share, whole) for share in shares), class_="legend")
    return joined(_drawing(title, described, 28, drawn), legend)


def swatch(kind: str) -> Html:
    """A small square in a fill, for a legend."""
    box = element("rect", x=0, y=0, width=12, height=12, rx=2, class_=f"bar {kind}")
    return element("svg", box, class_="swatch", width=12, height=12, aria_hidden="true")


def patterns() -> Html:
    """What the fills are made of; once a page, before its first chart."""
    return Html(
        '<svg class="patterns" width="0" height="0" aria-hidden="true"><defs>'
        + "".join(
            f'<pattern id="fill-{kind}" width="{size}" height="{size}" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate({turn})"><rect width="{size}" height="{size}" class="ground {kind}"/>'
            f'<rect width="{line}" height="{size}" class="stripe {kind}"/></pattern>'
            for kind, size, line, turn in (("b", 6, 2, 45), ("c", 4, 1, 0), ("cut", 6, 3, 135), ("off", 8, 1, 45))
        )
        + "</defs></svg>"
    )


def _drawing(title: str, described: str, height: float, *content: Content) -> Html:
    labels = (element("title", title), element("desc", described))
    return element("svg", *labels, *content, width="100%", height=height, role="img", class_="chart")


def _mark(mark: Mark, axis: Axis, row: int, bottom: float) -> Html:
    place = axis.place(mark.value)
    y = _ROW * row
    kind = "mark limit" if mark.is_limit else "mark"
    if mark.value > axis.last:
        return element("text", f"{mark.label} →", x="100%", y=y + 13, class_=f"{kind} end")
    side, shift = ("start", 6) if place < 50 else ("end", -6)
    line = element("line", x1=f"{place:.2f}%", x2=f"{place:.2f}%", y1=y + 2, y2=bottom, class_=kind)
    return joined(line, element("text", mark.label, x=f"{place:.2f}%", y=y + 13, dx=shift, class_=f"{kind} {side}"))


def _tick(value: float, axis: Axis, bottom: float) -> Html:
    place = axis.place(value)
    side = "start" if place < 5 else "end" if place > 95 else "middle"
    line = element("line", x1=f"{place:.2f}%", x2=f"{place:.2f}%", y1=bottom, y2=bottom + 4, class_="base")
    return joined(line, element("text", number(value), x=f"{place:.2f}%", y=bottom + 17, class_=f"tick {side}"))


def _key(share: Share, whole: float) -> Html:
    value = element("b", number(share.value))
    return element("li", swatch(share.kind), f"{share.label} ", value, f" {percent(share.value / whole)}")


def _bar(share: Share, most: float) -> Html:
    wide = f"{max(0.5, 100 * share.value / most) if share.value else 0:.2f}%"
    track = element("rect", x=0, y=0, width="100%", height=8, rx=4, class_="track")
    drawn = element("rect", x=0, y=0, width=wide, height=8, rx=4, class_=f"bar {share.kind}")
    told = element("div", element("span", share.label), element("b", number(share.value)))
    return element("li", told, element("svg", track, drawn, width="100%", height=8, class_="chart", aria_hidden="true"))


def _powers(first: float, last: float) -> list[float]:
    low, high = math.ceil(math.log2(first) - 1e-9), math.floor(math.log2(last) + 1e-9)
    stride = max(1, math.ceil((high - low + 1) / _MOST_TICKS))
    return [2.0**power for power in range(low, high + 1, stride)]


def _round_step(rough: float) -> float:
    size = 10 ** math.floor(math.log10(rough))
    return next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * (1 - 1e-9))
