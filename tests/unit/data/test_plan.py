"""Steps cover each epoch once, whatever the division into micro-batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtune.data import plan as plan_module
from llmtune.data.plan import PlanSettings, StepPlan, balanced, packed, padded_shares
from llmtune.data.token_steps import fill_steps

pytestmark = pytest.mark.fast
MAX_SEQ_LEN = 16

lengths_lists = st.lists(st.integers(1, MAX_SEQ_LEN), min_size=1, max_size=40)
divisions = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


def make_plan(lengths, division=(2, 2, 1), packing=True, seed=1, tokens_per_step=None):
    micro, accumulation, processes = division
    settings = PlanSettings(
        seed=seed,
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        num_processes=processes,
        packing=packing,
        max_seq_len=MAX_SEQ_LEN,
        tokens_per_step=tokens_per_step,
    )
    tokens = np.array(lengths, dtype=np.int64)
    return StepPlan(tokens, tokens // 2, settings)


@given(lengths_lists, divisions, st.booleans(), st.integers(0, 3))
def test_each_epoch_takes_each_example_once_within_the_limits(lengths, division, packing, epoch):
    plan = make_plan(lengths, division, packing)
    taken = []
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        shares = [plan.step(step, rank) for rank in range(division[2])]
        held = [index for share in shares for micro_batch in share.micro_batches for index in micro_batch]
        assert sorted(held) == sorted(shares[0].indices)
        for share in shares:
            assert (share.epoch, share.indices) == (epoch, shares[0].indices)
            assert share.num_tokens == sum(lengths[index] for index in share.indices)
            assert share.num_supervised_tokens == sum(lengths[index] // 2 for index in share.indices)
            for micro_batch in share.micro_batches:
                assert micro_batch
                if packing:
                    assert sum(lengths[index] for index in micro_batch) <= division[0] * MAX_SEQ_LEN
                else:
                    assert len(micro_batch) <= division[0]
            if not packing:
                assert len(share.micro_batches) <= division[1]
        taken += shares[0].indices
    assert sorted(taken) == list(range(len(lengths)))


@given(
    lengths_lists, st.sampled_from([(12, 1, 1), (1, 12, 1), (4, 3, 1), (2, 2, 3), (2, 3, 2), (6, 1, 2)]), st.booleans()
)
def test_a_step_is_the_same_set_however_the_global_batch_is_divided(lengths, division, packing):
    reference, other = make_plan(lengths, (3, 4, 1)), make_plan(lengths, division, packing)
    assert reference.steps_per_epoch == other.steps_per_epoch
    for step in range(2 * reference.steps_per_epoch):
        one, two = reference.step(step, 0), other.step(step, division[2] - 1)
        assert (one.indices, one.num_supervised_tokens) == (two.indices, two.num_supervised_tokens)


@given(lengths_lists, divisions, st.booleans(), st.integers(MAX_SEQ_LEN, 60))
def test_filled_with_tokens_each_epoch_takes_each_example_once_within_the_limits(lengths, division, packing, tokens):
    plan = make_plan(lengths, division, packing, tokens_per_step=tokens)
    taken = {}
    for step in range(plan.count_steps(3)):
        shares = [plan.step(step, rank) for rank in range(division[2])]
        held = [index for share in shares for micro_batch in share.micro_batches for index in micro_batch]
        assert sorted(held) == sorted(shares[0].indices)
        for share in shares:
            assert 0 < share.num_tokens == sum(lengths[index] for index in share.indices) <= tokens
            assert share.num_supervised_tokens == sum(lengths[index] // 2 for index in share.indices)
            assert share.indices == shares[0].indices
            for micro_batch in share.micro_batches:
                size, most = len(micro_batch), division[0]
                if packing:
                    size, most = sum(lengths[index] for index in micro_batch), division[0] * MAX_SEQ_LEN
                assert 0 < size <= most
        taken.setdefault(shares[0].epoch, []).extend(shares[0].indices)
    assert [sorted(indices) for indices in taken.values()] == [list(range(len(lengths)))] * 3
    assert list(taken) == [0, 1, 2]


@given(
    lengths_lists,
    st.sampled_from([(12, 1, 1), (1, 12, 1), (4, 3, 5), (2, 2, 3), (2, 3, 2)]),
    st.booleans(),
    st.integers(MAX_SEQ_LEN, 60),
)
def test_a_step_of_tokens_is_the_same_set_however_it_is_divided(lengths, division, packing, tokens):
    """Among as many processes as there may be, also a number that divides nothing."""
    reference = make_plan(lengths, (3, 4, 1), tokens_per_step=tokens)
    other = make_plan(lengths, division, packing, tokens_per_step=tokens)
    for step in range(reference.count_steps(2)):
        one, two = reference.step(step, 0), other.step(step, division[2] - 1)
        assert (one.epoch, one.indices) == (two.epoch, two.indices)
        assert (one.num_tokens, one.num_supervised_tokens) == (two.num_tokens, two.num_supervised_tokens)


UNEVEN = [3, 16, 5, 9, 12, 1, 7, 14, 2, 11, 8, 15, 4, 10, 6, 13] * 2
EPOCHS = [15, 14, 14, 14, 14, 15]
"""Steps of at most 20 tokens in each of its epochs."""


@pytest.mark.parametrize("tokens", [None, 20])
def test_a_step_does_not_depend_on_what_was_asked_before(tokens):
    plan = make_plan(UNEVEN, tokens_per_step=tokens)
    forward = [plan.step(step, 0) for step in range(40)]
    assert [plan.step(step, 0) for step in reversed(range(40))] == forward[::-1]
    assert make_plan(UNEVEN, tokens_per_step=tokens).step(29, 0) == forward[29]


def test_epochs_differ_in_their_steps_and_the_total_is_exact():
    plan = make_plan(UNEVEN, tokens_per_step=20)
    epochs = [plan.step(step, 0).epoch for step in range(plan.count_steps(6))]
    assert [epochs.count(epoch) for epoch in range(6)] == EPOCHS
    assert epochs == sorted(epochs)
    assert plan.step(len(epochs), 0).epoch == 6
    assert plan.steps_per_epoch == 15


@pytest.mark.parametrize(
    ("max_steps", "expected", "filled"), [(None, 24, 43), (10, 10, 10), (29, 24, 29), (100, 24, 43), (15, 15, 15)]
)
def test_a_run_has_whole_epochs_up_to_the_limit(max_steps, expected, filled):
    assert make_plan([1] * 31).count_steps(num_epochs=3, max_steps=max_steps) == expected
    assert make_plan(UNEVEN, tokens_per_step=20).count_steps(num_epochs=3, max_steps=max_steps) == filled


def test_epochs_that_are_not_reached_are_not_planned(monkeypatch):
    planned = []
    monkeypatch.setattr(plan_module, "fill_steps", lambda *given: planned.append(1) or fill_steps(*given))
    assert make_plan(UNEVEN, tokens_per_step=20).count_steps(10**6, max_steps=20) == 20
    assert len(planned) == 2


def test_epochs_done():
    plan = make_plan([1] * 31)
    assert [plan.epochs_done(steps) for steps in (1, 8, 12)] == [1 / 8, 1, 1.5]
    plan = make_plan(UNEVEN, tokens_per_step=20)
    assert [plan.epochs_done(steps) for steps in (3, 15, 22, 29, 43)] == [0.2, 1, 1.5, 2, 3]


def test_an_epoch_is_planned_once_while_its_steps_are_taken(monkeypatch):
    planned = []
    monkeypatch.setattr(plan_module, "fill_steps", lambda *given: planned.append(1) or fill_steps(*given))
    plan = make_plan(UNEVEN, tokens_per_step=20)
    total = plan.count_steps(3)
    for step in range(total):
        plan.step(step, 0)
        plan.epochs_done(step + 1)
    assert len(planned) == 6, "three to count, three to train"


def test_order_changes_with_epoch_and_seed():
    plan = make_plan([1] * 40)
    assert plan.step(0, 0).indices != plan.step(10, 0).indices
    assert plan.step(0, 0).indices != make_plan([1] * 40, seed=2).step(0, 0).indices


def test_the_order_is_the_recorded_one():
    """A change here changes every run that is resumed or repeated."""
    assert make_plan([1] * 8, (8, 1, 1)).step(0, 0).indices == (2, 3, 4, 7, 5, 1, 0, 6)


def test_the_last_step_is_smaller_and_every_process_takes_part():
    plan = make_plan([4] * 9, (2, 2, 2))
    assert plan.steps_per_epoch == 2
    last = [plan.step(1, rank) for rank in range(2)]
    assert [len(share.indices) for share in last] == [1, 1]
    assert [share.micro_batches for share in last] == [((last[0].indices[0],),), ()]
    assert last[1].num_supervised_tokens == 2


def test_packing_cuts_at_example_borders():
    assert packed({5: 4, 3: 4, 8: 3, 1: 8}, max_tokens=8) == ((5, 3), (8,), (1,))
    assert packed({}, max_tokens=8) == ()


def test_a_step_of_tokens_is_shared_out_evenly():
    plan = make_plan([4] * 12, (2, 2, 2), tokens_per_step=48)
    shares = [plan.step(0, rank).micro_batches for rank in range(2)]
    assert [[len(micro_batch) for micro_batch in share] for share in shares] == [[6], [6]]
    assert plan.count_steps(1) == 1


def test_shares_are_even_in_tokens():
    assert balanced({1: 2, 2: 9, 3: 3, 4: 5}, 2) == [{2: 9}, {1: 2, 3: 3, 4: 5}]
    assert balanced({1: 2}, 3) == [{1: 2}, {}, {}]


def test_padded_micro_batches_are_of_similar_length():
    lengths = {1: 2, 2: 9, 3: 3, 4: 8, 5: 5, 6: 5, 7: 1, 8: 1}
    assert padded_shares(lengths, 2, 2) == [((2, 4), (7, 8)), ((5, 6), (3, 1))]


@given(st.lists(st.integers(1, MAX_SEQ_LEN), min_size=8, max_size=8))
def test_no_share_is_longer_than_another_by_more_than_an_example(lengths):
    totals = [sum(share.values()) for share in balanced(dict(enumerate(lengths)), 2)]
    assert abs(totals[0] - totals[1]) <= max(lengths)


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        make_plan([])
    with pytest.raises(ValueError, match="17 tokens, max_seq_len is 16"):
        make_plan([17])
    with pytest.raises(ValueError, match="16 tokens, tokens_per_step is 15"):
        make_plan([1, 16], tokens_per_step=15)
    with pytest.raises(ValueError, match="rank 1 of 1"):
        make_plan([1]).step(0, 1)
    with pytest.raises(ValueError, match="step -1"):
        make_plan([1]).step(-1, 0)
