"""Steps filled with tokens take each example once, are full, and let none wait for long."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtune.data import token_steps
from llmtune.data.token_steps import LOOK_AHEAD, fill_steps

pytestmark = pytest.mark.fast
TOKENS = 16_384


def filled(lengths, tokens_per_step=10):
    return [step.tolist() for step in fill_steps(np.array(lengths, dtype=np.int64), tokens_per_step)]


def most_passed_over(steps):
    """By how many steps, at most, one example was passed over: those before its own that took a later one."""
    step_of = {place: number for number, step in enumerate(steps) for place in step}
    soonest, most = len(steps), 0
    for place in sorted(step_of, reverse=True):
        most = max(most, step_of[place] - soonest)
        soonest = min(soonest, step_of[place])
    return most


def share_left(lengths, tokens_per_step=TOKENS):
    """What steps lack of their tokens on average; the last one, which has what is left over, doesn't count."""
    steps = fill_steps(lengths, tokens_per_step)[:-1]
    return 1 - sum(int(lengths[step].sum()) for step in steps) / (tokens_per_step * len(steps))


def uneven(count=40_000):
    """Lengths as those of documents: half of them below 180 tokens, a few of 2,048."""
    lengths = np.exp(np.random.default_rng(1).normal(np.log(180), 1.0, count))
    return np.clip(lengths, 16, 2048).astype(np.int64)


def up_to_a_quarter(count=20_000):
    return np.random.default_rng(2).integers(1, TOKENS // 4 + 1, count)


def near_a_quarter(count=5_000):
    return np.random.default_rng(3).integers(TOKENS // 8, TOKENS // 4 + 1, count)


MIXES = pytest.mark.parametrize("lengths", [uneven, up_to_a_quarter, near_a_quarter])


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [
        # 5 doesn't fit beside 6, 4 fills it up; 5 comes first after that
        ([6, 5, 4, 3, 2], [[0, 2], [1, 3, 4]]),
        # 5 + 4 lack one; 4 gives way to 3 + 2
        ([5, 4, 7, 3, 2, 4], [[0, 3, 4], [1, 5], [2]]),
        # the earlier of two that are alike
        ([6, 5, 4, 4], [[0, 2], [1, 3]]),
        # full already, so nobody gives way
        ([5, 5, 4, 1, 5], [[0, 1], [2, 3, 4]]),
        # as long as a step: alone
        ([10, 1, 10], [[0], [1], [2]]),
        # all fit
        ([3, 3], [[0, 1]]),
        ([], []),
    ],
)
def test_by_hand(lengths, steps):
    assert filled(lengths) == steps


@given(st.lists(st.integers(1, 50), max_size=300), st.integers(50, 400))
def test_each_example_is_in_one_step_that_holds_it(lengths, tokens_per_step):
    steps = filled(lengths, tokens_per_step)
    assert sorted(place for step in steps for place in step) == list(range(len(lengths)))
    for number, step in enumerate(steps):
        assert step == sorted(step)
        assert 0 < sum(lengths[place] for place in step) <= tokens_per_step
        assert step[0] == min(place for later in steps[number:] for place in later), "whose turn it is"


@given(st.lists(st.integers(1, 50), max_size=300), st.integers(50, 400))
def test_none_waits_for_long(lengths, tokens_per_step):
    assert most_passed_over(filled(lengths, tokens_per_step)) <= LOOK_AHEAD


def test_nor_do_many_that_fit_badly():
    """Two of them are more than a step, and short ones come without end."""
    lengths = np.array([51] * 100 + [7] * 5000)
    lengths = np.random.default_rng(4).permutation(lengths)
    steps = filled(lengths, 100)
    print(f"passed over by {most_passed_over(steps)} steps at most")
    assert 0 < most_passed_over(steps) <= LOOK_AHEAD


@MIXES
def test_steps_are_full(lengths):
    left = share_left(lengths())
    print(f"{lengths.__name__}: {left:.3%} of a step is left")
    assert left < 0.002


@pytest.mark.parametrize("lengths", [up_to_a_quarter, near_a_quarter])
def test_control_in_the_order_alone_they_are_not(monkeypatch, lengths):
    monkeypatch.setattr(token_steps, "_FULL_PARTS", 1)
    assert share_left(lengths()) > 0.03


@MIXES
def test_most_examples_keep_their_turn(lengths):
    steps = [step.tolist() for step in fill_steps(lengths(), TOKENS)]
    print(f"{lengths.__name__}: passed over by {most_passed_over(steps)} steps at most")
    assert most_passed_over(steps) <= 10


def test_the_steps_are_the_recorded_ones():
    """A change here changes every run that is resumed or repeated."""
    lengths = [4, 31, 8, 22, 17, 40, 11, 29, 36, 5, 13, 38, 9, 27, 19, 33]
    assert filled(lengths, 80) == [[0, 2, 4, 5, 6], [1, 8, 10], [3, 11, 14], [7, 9, 12, 15], [13]]
