"""The plots of a comparison's page."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmtune.comparison import wording
from llmtune.comparison.loss_curves import curve_axes, row_curve
from llmtune.comparison.naming import short_keys, value_texts
from llmtune.comparison.outcome import Comparison, Row
from llmtune.comparison.statistics import Estimate, Interval
from llmtune.pages.axes import Frame, axis_for
from llmtune.pages.charts import Axis, Mark
from llmtune.pages.curves import curves
from llmtune.pages.elements import Html, element
from llmtune.pages.heat_map import Shaded, heat_map
from llmtune.pages.intervals import Ranged, intervals
from llmtune.pages.numbers import counted
from llmtune.pages.page import columns, section
from llmtune.pages.scatter import LONGEST_LABEL, Point, num_unnamed, scatter
from llmtune.pages.series import Kind, kinds

_MINUTE, _HOUR = 60, 3600
_ABSENT = object()
_KEYS = re.compile(r"(?<!\S)([\w.]+=)(?=\S)")
_CUT_AT = 1.5
"""Times the spread of the points that an error bar may stretch a chart."""


def row_kinds(comparison: Comparison) -> dict[str, Kind]:
    """How each trained row is drawn, by name; those that stand for their method get colours first."""
    tuned = _tuned(comparison)
    order = sorted(tuned, key=lambda row: not row.is_chosen)
    return {row.name: kind for row, kind in zip(order, kinds(len(order)), strict=True)}


def cost_plots(comparison: Comparison) -> Html:
    """Quality, or loss where no row has a quality, against peak memory and against training time."""
    unit, scale = _time_unit([row.cost.train_seconds for row in _tuned(comparison)])
    plots = [
        _cost_plot(comparison, "peak memory", "GiB", lambda row: row.cost.peak_memory_gib),
        _cost_plot(comparison, "training time", unit, lambda row: _scaled(row.cost.train_seconds, scale)),
    ]
    drawn = [plot for plot in plots if plot]
    if not drawn:
        return Html()
    what, better = ("quality", "higher") if _has_quality(comparison) else ("a low loss", "lower")
    note = f"Further left costs less, {better} is better. Bars are 95 % intervals; an arrow goes on beyond the chart."
    keys = list(dict.fromkeys(key for row in _tuned(comparison) for key in _KEYS.findall(row.name)))
    if any(_labels_of(comparison)[row.name] != row.name for row in _tuned(comparison)):
        note += f" Names here leave out {wording.listed(keys)}."
    return section(f"What {what} costs", columns(*drawn), note=note)


def loss_plot(comparison: Comparison) -> Html:
    """Each row's loss in its interval, with the base model as a line."""
    bases = [row for row in comparison.rows if row.is_base]
    base = bases[0] if len(bases) == 1 else None
    looks = row_kinds(comparison)
    shown = [row for row in comparison.rows if row is not base]
    entries = [
        Ranged(
            row.name,
            row.loss.value,
            row.loss.low,
            row.loss.high,
            wording.measured(row.loss),
            looks.get(row.name, Kind(None)),
            wording.basis(row.loss, len(row.seeds), whole=False),
        )
        for row in shown
    ]
    name = wording.METRICS[comparison.metric]
    marks = []
    if base is not None and math.isfinite(base.loss.value):
        marks = [Mark(base.loss.value, f"{base.name} {wording.loss(base.loss.value)}")]
    drawn = intervals(name, entries, marks, wording.UNITS[comparison.metric])
    note = (
        "Lower is better. Lines are 95 % intervals of each row alone; differences between rows are taken example by "
        "example and are surer than these lines look."
    )
    return section(f"{name[:1].upper()}{name[1:]}", drawn, note=note)


def to_full_plot(comparison: Comparison) -> Html:
    """How far each row's loss is above full's, and how far it may be to be good enough; nothing without a full row."""
    looks = row_kinds(comparison)
    entries = [
        _difference(row, row.to_full, looks, wording.standing(row, comparison))
        for row in _tuned(comparison)
        if row.to_full is not None
    ]
    if not entries or comparison.unfair:
        return Html()
    marks = [Mark(0.0, "full")]
    references = [row for row in comparison.rows if row.standing == "reference" and row.gain is not None]
    note = "The difference on the same examples and seeds, with its 95 % interval. Right of the line is worse."
    if len(references) == 1 and references[0].gain is not None and references[0].gain.value > 0:
        limit = comparison.margin * references[0].gain.value
        marks.append(Mark(limit, f"good enough: left of {wording.loss(limit, signed=True)}", is_limit=True))
        note += " Where several rows are judged at once, a little more is asked than that an interval ends at its left."
    drawn = intervals("loss above full's", entries, marks, wording.UNITS[comparison.metric], keep_marks=True)
    return section("Loss above full's", drawn, note=note)


def forgetting_plot(comparison: Comparison) -> Html:
    """How much each row's loss on general text rose above the base model's; nothing where it wasn't measured."""
    looks = row_kinds(comparison)
    entries = [_difference(row, row.forgetting, looks) for row in _tuned(comparison) if row.forgetting is not None]
    if not entries:
        return Html()
    unit = wording.UNITS[comparison.metric]
    drawn = intervals("forgotten", entries, [Mark(0.0, "base model")], unit, keep_marks=True)
    note = "Loss on general text above the base model's: what was forgotten. Right of the line is worse."
    return section("Forgotten on general text", drawn, note=note)


def _difference(row: Row, difference: Estimate, looks: Mapping[str, Kind], note: str = "") -> Ranged:
    """A difference of a row from another, with its sign."""
    shown = wording.measured(difference, signed=True)
    return Ranged(row.name, difference.value, difference.low, difference.high, shown, looks[row.name], note)


def sweep_map(comparison: Comparison) -> Html:
    """Losses of a sweep of exactly two keys, a cell a row; nothing for other sweeps, or where nothing is ranked."""
    tuned = _tuned(comparison)
    if len(comparison.axes) != 2 or comparison.unfair or len(tuned) < 3:
        return Html()
    down, across = comparison.axes
    labels = {key: _labels(key, tuned) for key in comparison.axes}
    cells = {
        (_place(row, down, labels[down]), _place(row, across, labels[across])): Shaded(
            row.loss.value, wording.loss(row.loss.value), wording.half_width(row.loss)
        )
        for row in tuned
    }
    short = short_keys(comparison.axes)
    name = wording.METRICS[comparison.metric]
    drawn = heat_map(
        f"{name} by {short[down]} and {short[across]}",
        (short[down], short[across]),
        (list(labels[down].values()), list(labels[across].values())),
        cells,
    )
    note = "Mean over seeds; darker is lower, the lowest is outlined. Whether it can be told from the others is below."
    return section(f"{name[:1].upper()}{name[1:]} by {short[down]} and {short[across]}", drawn, note=note)


def loss_curves(comparison: Comparison) -> Html:
    """Training and validation losses by step, read from the runs' records; nothing where none is there."""
    looks = row_kinds(comparison)
    read = [row_curve(row, looks[row.name]) for row in _tuned(comparison)]
    found = [entry for entry in read if entry.curve.line]
    if not found:
        return Html()
    drawn = [entry.curve for entry in found]
    x, y = curve_axes(drawn)
    chart = curves("loss by step", drawn, Frame(x, y, "steps", wording.UNITS["loss"], 300))
    note = (
        "Lines: training loss, smoothed (moving average over steps, weight 0.9 on what came before), mean over seeds; "
        "bands reach from the lowest seed to the highest. Signs: validation loss. The first steps may lie above."
    )
    partly = [
        f"{entry.curve.label}: {entry.num_read} of {entry.num_runs} runs"
        for entry in read
        if entry.num_read < entry.num_runs
    ]
    gone = (
        element("p", f"Records that can't be read are left out. {'; '.join(partly)}.", class_="more")
        if partly
        else None
    )
    return section("Loss curves", chart, gone, note=note)


def _tuned(comparison: Comparison) -> list[Row]:
    return [row for row in comparison.rows if not row.is_base]


def _has_quality(comparison: Comparison) -> bool:
    return not comparison.unfair and any(row.quality is not None for row in comparison.rows)


def _cost_plot(comparison: Comparison, name: str, unit: str, cost: Callable[[Row], float | None]) -> Html | None:
    """One plot; None where fewer than two rows have a place in it."""
    looks, labels = row_kinds(comparison), _labels_of(comparison)
    with_quality = _has_quality(comparison)
    margin = comparison.margin if with_quality else None
    points = [
        point
        for row in _tuned(comparison)
        if (point := _point(row, cost(row), unit, looks[row.name], margin)) is not None and point.is_known
    ]
    if len(points) < 2:
        return None
    drawn = {point.label for point in points}
    left = [row for row in _tuned(comparison) if row.name not in drawn]
    points = [replace(point, label=labels[point.label]) for point in points]
    y_name = "quality, % of full's gain over the base model" if with_quality else wording.METRICS[comparison.metric]
    x = axis_for((point.x for point in points), unit, from_zero=True)
    frame = Frame(x, _bounded_axis(points), f"{name}, {unit}", y_name)
    title = f"{'quality' if with_quality else wording.METRICS[comparison.metric]} against {name}"
    marks = [Mark(100.0, "")] if with_quality else []
    told = [*_not_drawn(left, name, cost, with_quality=with_quality), *_without_name(num_unnamed(points, frame))]
    more = element("p", "; ".join(told), class_="more") if told else None
    return element("div", element("h3", f"{title[:1].upper()}{title[1:]}"), scatter(title, points, frame, marks), more)


def _not_drawn(
    rows: Sequence[Row], name: str, cost: Callable[[Row], float | None], *, with_quality: bool
) -> Iterator[str]:
    """How many rows a plot hasn't, by why."""
    what = "quality" if with_quality else "loss"
    whys = Counter(_why(row, name, cost, what) for row in rows)
    yield from (f"{number} not drawn: {why}" for why, number in whys.items())


def _why(row: Row, name: str, cost: Callable[[Row], float | None], what: str) -> str:
    found = cost(row)
    if found is None or not math.isfinite(found):
        return f"{name} unknown"
    return "no quality, as not chosen on validation" if what == "quality" and not row.is_chosen else f"{what} unknown"


def _without_name(count: int) -> Iterator[str]:
    if count:
        yield f"no room for {counted(count, 'name')}: point at a sign to read it"


def _point(row: Row, cost: float | None, unit: str, kind: Kind, margin: float | None) -> Point | None:
    """Where a row stands; without a margin by its loss, for want of quality."""
    if cost is None:
        return None
    if margin is None:
        found: Interval = row.loss
        told = f"{wording.measured(found)} at {cost:,.2f} {unit}"
        return Point(row.name, cost, found.value, found.low, found.high, kind, told)
    if row.standing == "reference":
        return Point(row.name, cost, 100.0, math.nan, math.nan, kind, f"100 % by definition at {cost:,.2f} {unit}")
    if row.quality is None:
        return None
    low, value, high = (100 * end for end in (row.quality.low, row.quality.value, row.quality.high))
    told_value, told_ends = wording.quality(row.quality, margin)
    told = f"{told_value} ({told_ends}) at {cost:,.2f} {unit}"
    return Point(row.name, cost, value, low, high, kind, told)


def _labels_of(comparison: Comparison) -> dict[str, str]:
    """Each row's name; where one is too long, the values alone for all of them (`lora 8 0.0002`)."""
    names = [row.name for row in _tuned(comparison)]
    short = [_KEYS.sub("", name) for name in names]
    is_short = all(len(name) <= LONGEST_LABEL for name in names)
    return dict(zip(names, names if is_short or len(set(short)) < len(names) else short, strict=True))


def _bounded_axis(points: Sequence[Point]) -> Axis:
    """An axis with all points, and error bars as far as they don't press the points together."""
    values = [point.y for point in points]
    halves = sorted(abs(end - point.y) for point in points for end in (point.low, point.high) if math.isfinite(end))
    most = _CUT_AT * max(max(values) - min(values), halves[len(halves) // 2] if halves else 0.0)
    ends = [
        min(max(end, point.y - most), point.y + most)
        for point in points
        for end in (point.low, point.high)
        if math.isfinite(end)
    ]
    return axis_for([*values, *ends])


def _time_unit(seconds: Sequence[float | None]) -> tuple[str, float]:
    """The unit for a time axis, and how many seconds it has."""
    longest = max((value for value in seconds if value is not None and math.isfinite(value)), default=0.0)
    return ("h", _HOUR) if longest >= 2 * _HOUR else ("min", _MINUTE) if longest >= 2 * _MINUTE else ("s", 1)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def _labels(key: str, rows: Sequence[Row]) -> dict[str, str]:
    """The values of a key in order, each by its `repr`; `without` for rows that lack it."""
    values: list[Any] = []
    for row in rows:
        value = row.values.get(key, _ABSENT)
        if not any(value is known or value == known for known in values):
            values.append(value)
    texts = value_texts([value for value in values if value is not _ABSENT], key)
    values.sort(key=_order)
    return {_key(value): "without" if value is _ABSENT else texts[repr(value)] for value in values}


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then texts, then what is absent."""
    if value is _ABSENT:
        return (2, 0.0, "")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if is_number else (1, 0.0, str(value))


def _place(row: Row, key: str, labels: Mapping[str, str]) -> int:
    return list(labels).index(_key(row.values.get(key, _ABSENT)))


def _key(value: Any) -> str:
    return "" if value is _ABSENT else repr(value)
