"""What the curves of a run are said to show."""

import pytest

from llmtune.training.advice import advice

pytestmark = pytest.mark.fast


def _curve(*losses: float, every: int = 1) -> list[tuple[int, float]]:
    return [((number + 1) * every, loss) for number, loss in enumerate(losses)]


FALLING = _curve(*[3.0 - 0.02 * step for step in range(50)])
FLAT = _curve(*[2.0] * 50)


def test_a_run_whose_losses_fall_together_gets_no_advice():
    assert advice(FALLING, _curve(2.9, 2.7, 2.5, 2.3, 2.1, every=10)) == []


def test_a_rise_names_both_steps_and_a_key():
    (sentence,) = advice(FALLING, _curve(2.5, 2.2, 2.4, 2.5, 2.6, every=10))
    assert "rose from 2.2000 after step 20 to 2.6000 after step 50" in sentence
    assert "train.num_epochs" in sentence
    assert "early_stopping_patience" in sentence


def test_a_rise_below_one_percent_is_noise():
    assert advice(FALLING, _curve(2.5, 2.3, 2.2, 2.21, every=10)) == []


def test_flat_losses_ask_for_a_higher_rate():
    (sentence,) = advice(FLAT, _curve(2.0, 2.0, 2.0, every=10))
    assert "stayed flat at 2.0000 from step 10 to 30" in sentence
    assert "train.learning_rate" in sentence


def test_a_training_loss_that_falls_alone_is_told_from_flat():
    (sentence,) = advice(FALLING, _curve(2.5, 2.5, 2.5, 2.5, 2.5, every=10))
    assert "Training loss fell by 0.8000 after step 10 while validation loss stayed at 2.5000" in sentence


@pytest.mark.parametrize(("num_steps", "warned"), [(29, True), (30, False)])
def test_fewer_than_30_updates_are_too_few(num_steps, warned):
    sentences = advice(FALLING[:num_steps], [])
    assert bool(sentences) is warned
    assert all(f"Only {num_steps} weight updates" in sentence for sentence in sentences)


def test_nothing_to_judge_is_no_advice():
    assert advice([], []) == []
