import json
import math

import pytest

from llmtune.tracking.plots import TestLosses, _series, _smoothed, learning_rate_plot, loss_plot

pytestmark = pytest.mark.fast
PNG = b"\x89PNG\r\n\x1a\n"


def append_metrics(path, metrics, step):
    with path.open("a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")


@pytest.fixture
def metrics_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 61):
        loss = 1.7 + 0.6 * math.exp(-step / 15) + 0.15 * math.sin(step * 2.1)
        append_metrics(path, {"train/loss": loss, "train/learning_rate": 2e-4 * min(1, step / 6)}, step)
        if step % 20 == 0:
            append_metrics(path, {"evaluate/validation_loss": 1.75 + 0.5 * math.exp(-step / 15)}, step)
    append_metrics(path, {"train/loss": math.nan}, 61)
    return path


def test_values_by_step_and_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"a": 1.5, "b": 1.0}, 2)
    append_metrics(path, {"a": 9.0}, 1)
    with path.open("a") as file:
        file.write('{"step": 3, "a')
    assert list(_series(path, "a").items()) == [(1, 9.0), (2, 1.5)]
    assert _series(tmp_path / "none.jsonl", "a") == {}


def test_pictures_are_drawn(metrics_file, tmp_path):
    for picture in (
        loss_plot(metrics_file, tmp_path / "plots" / "loss.png", test_losses=TestLosses(1.9, 2.2)),
        learning_rate_plot(metrics_file, tmp_path / "plots" / "rate.png"),
    ):
        assert picture.read_bytes().startswith(PNG)


def test_nothing_recorded_nothing_drawn(tmp_path):
    assert loss_plot(tmp_path / "none.jsonl", tmp_path / "loss.png") is None
    assert learning_rate_plot(tmp_path / "none.jsonl", tmp_path / "rate.png") is None
    assert list(tmp_path.iterdir()) == []


def test_smoothing_starts_at_the_first_value_and_passes_over_nan():
    assert _smoothed([2.0, 1.0]) == pytest.approx([2.0, (0.9 * 0.1 * 2.0 + 0.1 * 1.0) / 0.19])
    assert _smoothed([2.0, math.nan])[1] == pytest.approx(2.0)
