"""Plots of a run, drawn from its metrics file."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.runs.metrics_log import MetricsLog

_TRAIN_COLOUR = "#2a6fbb"
_VALIDATION_COLOUR = "#d1495b"
_BASE_COLOUR = "#6c757d"
_SMOOTHING = 0.9


@dataclass(frozen=True)
class LossNames:
    """Metrics that the loss plot shows."""

    train: str = "train/loss"
    validation: str = "evaluate/validation_loss"


@dataclass(frozen=True)
class TestLosses:
    """Losses on the test set, in nats per supervised token."""

    __test__ = False
    tuned: float
    base: float | None = None
    """None where the base model wasn't measured."""


def loss_plot(
    metrics_file: Path, picture: Path, *, test_losses: TestLosses | None = None, names: LossNames | None = None
) -> Path | None:
    """Draw training and validation loss over the steps.

    Args:
        metrics_file: the run's `metrics.jsonl`.
        picture: PNG that is written.
        test_losses: losses on the test set, which is another split than validation's.
        names: metrics that are drawn.

    Returns:
        The picture; None where no training loss was recorded.
    """
    names = names or LossNames()
    train, validation = _series(metrics_file, names.train), _series(metrics_file, names.validation)
    if not train:
        return None
    figure, axes = _axes("Loss (nats per supervised token)")
    steps = list(train)
    axes.plot(steps, list(train.values()), color=_TRAIN_COLOUR, linewidth=0.8, alpha=0.35, label="training, each step")
    axes.plot(steps, _smoothed(list(train.values())), color=_TRAIN_COLOUR, linewidth=2.2, label="training, smoothed")
    if validation:
        style: dict[str, Any] = {"color": _VALIDATION_COLOUR, "marker": "o", "markersize": 6, "linewidth": 1.4}
        axes.plot(list(validation), list(validation.values()), label="validation", **style)
    if test_losses is not None:
        if test_losses.base is not None and math.isfinite(test_losses.base):
            axes.axhline(
                test_losses.base, color=_BASE_COLOUR, linestyle="--", linewidth=1.2, label="test set, base model"
            )
        axes.plot(
            [steps[-1]],
            [test_losses.tuned],
            color=_BASE_COLOUR,
            marker="*",
            markersize=13,
            linestyle="none",
            label="test set, tuned model",
        )
    axes.legend(frameon=False)
    return _save(figure, picture)


def learning_rate_plot(metrics_file: Path, picture: Path, name: str = "train/learning_rate") -> Path | None:
    """Draw the learning rate over the steps.

    Args:
        metrics_file: the run's `metrics.jsonl`.
        picture: PNG that is written.
        name: metric that is drawn.

    Returns:
        The picture; None where no learning rate was recorded.
    """
    rates = _series(metrics_file, name)
    if not rates:
        return None
    figure, axes = _axes("Learning rate")
    axes.plot(list(rates), list(rates.values()), color=_TRAIN_COLOUR, linewidth=2.2)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="scientific", scilimits=(-3, 3))
    return _save(figure, picture)


def _series(metrics_file: Path, name: str) -> dict[int, float]:
    """Step to value, in order of the steps."""
    return dict(sorted(MetricsLog(metrics_file).losses(name)))


def _smoothed(values: list[float]) -> list[float]:
    """Exponential moving average, corrected for its start; values that are not finite are passed over."""
    average, weight, smooth = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average = _SMOOTHING * average + (1 - _SMOOTHING) * value
            weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        smooth.append(average / weight if weight else math.nan)
    return smooth


def _axes(label: str) -> tuple[Any, Any]:
    # matplotlib's pyplot would pick a backend for the whole process; a Figure of its own draws without one
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel("Step (weight updates)")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, picture: Path) -> Path:
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    return picture
