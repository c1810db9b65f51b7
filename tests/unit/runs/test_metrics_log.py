"""metrics.jsonl: appended, read and cut."""

import pytest

from llmtune.runs.metrics_log import MetricsLog

pytestmark = pytest.mark.fast


@pytest.fixture
def log(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append(step, {"train/loss": 3.0 - step})
    log.append(2, {"evaluate/validation_loss": 5.0})
    return log


def test_losses_by_step(log):
    assert log.losses("train/loss") == [(1, 2.0), (2, 1.0), (3, 0.0)]
    assert log.losses("evaluate/validation_loss") == [(2, 5.0)]


def test_cut_drops_later_steps_alone(log):
    log.cut_after(2)
    assert [entry["step"] for entry in log.read()] == [1, 2, 2]


def test_a_line_cut_short_by_a_kill_is_left_out_and_cut(log, tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 4, "train/lo')
    assert len(log.read()) == 4
    log.cut_after(3)
    log.append(4, {"train/loss": 9.0})
    assert log.losses("train/loss")[-1] == (4, 9.0)


def test_a_missing_file_is_empty(tmp_path):
    log = MetricsLog(tmp_path / "none.jsonl")
    log.cut_after(3)
    assert log.read() == []
