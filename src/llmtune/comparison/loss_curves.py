"""Training and validation losses of a row's runs by step: the mean over seeds, and how far apart they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmtune.comparison.outcome import Row
from llmtune.pages.axes import axis_for
from llmtune.pages.charts import Axis
from llmtune.pages.curves import Curve, Spread
from llmtune.pages.series import Kind
from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog

TRAIN, VALIDATION = "train/loss", "evaluate/validation_loss"
SMOOTHING = 0.9
"""Weight of what came before in the moving average."""
_MOST_PLACES = 240
_START = 0.05
"""Share of the steps at the start whose high losses may lie above the chart."""

_ByStep = Mapping[int, float]


@dataclass(frozen=True)
class RowCurve:
    """A row's curve, and how many of its runs it rests on."""

    curve: Curve
    num_read: int
    num_runs: int


def row_curve(row: Row, kind: Kind) -> RowCurve:
    """A row's losses by step, read from its runs' records; runs whose record is gone are left out.

    Args:
        row: the row.
        kind: how it is drawn.
    """
    read = [entry for run in row.runs if (entry := _read(run.folder)) is not None]
    line = _spreads([_smoothed(train) for train, _ in read])
    points = _spreads([validation for _, validation in read if validation])
    return RowCurve(Curve(row.name, kind, _thinned(line), _thinned(points)), len(read), len(row.runs))


def curve_axes(drawn: Sequence[Curve]) -> tuple[Axis, Axis]:
    """Axes over steps and losses; the high losses of the first steps needn't be in sight."""
    steps = [spread.x for curve in drawn for spread in (*curve.line, *curve.points)]
    last = max(steps, default=1.0)
    later = [
        value
        for curve in drawn
        for spread in (*curve.line, *curve.points)
        if spread.x >= _START * last
        for value in (spread.low, spread.high)
    ]
    return Axis(0.0, last, "steps"), axis_for(later)


def _read(folder: RunFolder) -> tuple[_ByStep, _ByStep] | None:
    """Both losses by step; None where no training loss can be read."""
    log = MetricsLog(folder.metrics_file)
    try:
        train, validation = ({step: _number(value) for step, value in log.losses(name)} for name in (TRAIN, VALIDATION))
    except (OSError, ValueError, KeyError, TypeError):  # damaged: the page does without
        return None
    return (train, validation) if train else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _smoothed(values: _ByStep) -> _ByStep:
    """Exponential moving average over the recorded steps, corrected for its start; nan stays where it was."""
    average, weight, smooth = 0.0, 0.0, {}
    for step, value in sorted(values.items()):
        if math.isfinite(value):
            average = SMOOTHING * average + (1 - SMOOTHING) * value
            weight = SMOOTHING * weight + (1 - SMOOTHING)
            smooth[step] = average / weight
        else:
            smooth[step] = math.nan
    return smooth


def _spreads(seeds: Sequence[_ByStep]) -> list[Spread]:
    """Mean, least and greatest over seeds at each step that all of them have."""
    if not seeds:
        return []
    shared = sorted(set(seeds[0]).intersection(*seeds[1:]))
    found = [(step, [values[step] for values in seeds]) for step in shared]
    return [Spread(step, sum(values) / len(values), *_range(values)) for step, values in found]


def _range(values: Sequence[float]) -> tuple[float, float]:
    return (math.nan, math.nan) if any(map(math.isnan, values)) else (min(values), max(values))


def _thinned(spreads: Sequence[Spread]) -> list[Spread]:
    """So many places at most, evenly apart, the last among them."""
    if len(spreads) <= _MOST_PLACES:
        return list(spreads)
    stride = (len(spreads) - 1) / (_MOST_PLACES - 1)
    return [spreads[round(place * stride)] for place in range(_MOST_PLACES)]
