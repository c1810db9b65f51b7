"""The learning rate of each step against values worked out by hand."""

import pytest

from llmtune.training.schedule import ScheduleSettings, learning_rate, warmup_steps_or_default

pytestmark = pytest.mark.fast

ROOT_HALF = 0.7071067811865476
EXPECTED = {
    # two steps of warm-up: 1/3 and 2/3 of the peak of 4.0; then eight steps from the peak down
    "linear": [4 / 3, 8 / 3, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5],
    "constant": [4 / 3, 8 / 3, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0],
    "cosine": [
        4 / 3, 8 / 3, 4.0, 2 * (1 + 0.9238795325112867), 2 * (1 + ROOT_HALF), 2 * (1 + 0.3826834323650898),
        2.0, 2 * (1 - 0.3826834323650898), 2 * (1 - ROOT_HALF), 2 * (1 - 0.9238795325112867),
    ],
    "cosine_with_restarts": [
        4 / 3, 8 / 3, 4.0, 2 * (1 + ROOT_HALF), 2.0, 2 * (1 - ROOT_HALF),
        4.0, 2 * (1 + ROOT_HALF), 2.0, 2 * (1 - ROOT_HALF),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", list(EXPECTED))
def test_each_step_has_the_rate_worked_out_by_hand(name):
    settings = ScheduleSettings(name=name, peak=4.0, warmup_steps=2, total_steps=10, num_cycles=2)
    assert [learning_rate(step, settings) for step in range(10)] == pytest.approx(EXPECTED[name], rel=1e-12)


@pytest.mark.parametrize(("name", "end"), [("linear", 0), ("cosine", 0), ("cosine_with_restarts", 0), ("constant", 4)])
def test_the_rate_just_after_the_run(name, end):
    settings = ScheduleSettings(name=name, peak=4.0, warmup_steps=2, total_steps=10)
    assert learning_rate(10, settings) == pytest.approx(end, abs=1e-12)


def test_without_warmup_the_first_step_is_at_the_peak():
    assert learning_rate(0, ScheduleSettings(name="cosine", peak=0.5, warmup_steps=0, total_steps=3)) == 0.5


def test_a_run_shorter_than_its_warmup_only_rises():
    settings = ScheduleSettings(name="linear", peak=1.0, warmup_steps=9, total_steps=3)
    assert [learning_rate(step, settings) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("typed", "total", "expected"), [(None, 60, 6), (None, 9, 0), (None, 5000, 100), (0, 60, 0), (70, 60, 70)]
)
def test_warmup_is_a_tenth_at_most_100_unless_typed(typed, total, expected):
    assert warmup_steps_or_default(typed, total) == expected
