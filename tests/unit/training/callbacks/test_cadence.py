"""When validations and checkpoints are due."""

import pytest

from llmtune.training.callbacks.cadence import is_due

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("every", "total", "expected"),
    [
        (None, 10, [2, 4, 6, 8, 10]),
        (None, 12, [3, 5, 8, 10, 12]),
        (None, 3, [1, 2, 3]),
        (None, 1, [1]),
        (4, 10, [4, 8, 10]),
        (20, 10, [10]),
    ],
)
def test_steps_at_which_it_is_due(every, total, expected):
    assert [step for step in range(1, total + 1) if is_due(step, every, total)] == expected
