"""Curves over seeds, against means and smoothed values worked out by hand, and what damaged records come to."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up_comparison import row, write_metrics

from llmtune.comparison.loss_curves import curve_axes, row_curve
from llmtune.comparison.outcome import Row
from llmtune.pages.curves import Curve, Spread
from llmtune.pages.series import Kind

pytestmark = pytest.mark.fast


def made(folder: Path, seeds: tuple[int, ...] = (1, 2)) -> Row:
    return row("lora", {}, 2.0, seeds=seeds, folder=folder)


def record(folder: Path, seed: int) -> Path:
    return folder / f"lora-2.0-{seed}"


def test_a_line_is_the_mean_of_smoothed_losses_and_its_band_their_range(tmp_path: Path) -> None:
    write_metrics(record(tmp_path, 1), [4.0, 2.0], {2: 3.0})
    write_metrics(record(tmp_path, 2), [6.0, 3.0, 3.0], {2: 5.0})
    found = row_curve(made(tmp_path), Kind(0))
    # Weight 0.9 on what came before: (0.9 * 0.1 * 4 + 0.1 * 2) / 0.19 and (0.9 * 0.1 * 6 + 0.1 * 3) / 0.19
    first, second = 0.56 / 0.19, 0.84 / 0.19
    assert [(s.x, s.y, s.low, s.high) for s in found.curve.line] == [
        (1, 5.0, 4.0, 6.0),
        (2, pytest.approx((first + second) / 2), pytest.approx(first), pytest.approx(second)),
    ]
    assert list(found.curve.points) == [Spread(2, 4.0, 3.0, 5.0)]
    assert (found.num_read, found.num_runs) == (2, 2)


def test_runs_whose_record_is_gone_or_damaged_are_left_out(tmp_path: Path) -> None:
    write_metrics(record(tmp_path, 1), [4.0], {})
    write_metrics(record(tmp_path, 2), [4.0], {})
    (record(tmp_path, 2) / "metrics.jsonl").write_text('{"step": 1, "train/loss": }\n')
    found = row_curve(made(tmp_path, (1, 2, 3)), Kind(0))
    assert (found.num_read, found.num_runs, len(found.curve.line)) == (1, 3, 1)
    gone = row_curve(made(tmp_path / "gone"), Kind(0))
    assert (gone.num_read, list(gone.curve.line), list(gone.curve.points)) == (0, [], [])


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    write_metrics(record(tmp_path, 1), [4.0, math.nan, 4.0], {1: math.nan})
    line = row_curve(made(tmp_path, (1,)), Kind(0)).curve.line
    assert [line[0].y, line[2].y] == pytest.approx([4.0, 4.0]) and math.isnan(line[1].y) and math.isnan(line[1].high)


def test_long_lines_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    write_metrics(record(tmp_path, 1), [2.0] * 1000, {})
    line = row_curve(made(tmp_path, (1,)), Kind(0)).curve.line
    assert (len(line), line[0].x, line[-1].x) == (240, 1, 1000)


def test_the_first_steps_do_not_stretch_the_axis() -> None:
    line = [Spread(1, 90, 80, 100), *(Spread(step, 2.0, 1.5, 2.5) for step in range(5, 101))]
    x, y = curve_axes([Curve("a", Kind(0), line)])
    assert (x.first, x.last) == (0, 100)
    assert (y.first, y.last) == (pytest.approx(1.5 - 0.06), pytest.approx(2.5 + 0.06))
    assert curve_axes([Curve("a", Kind(0), [Spread(1, 3.0, 3.0, 3.0)])])[1].last > 3
