"""What the numbers of a run are said to show."""

import math
import random
from dataclasses import replace

import pytest
import torch

from llmtune.config.method import FullConfig, LoraConfig, MethodConfig, QloraConfig
from llmtune.config.train import TrainConfig
from llmtune.training.advice import AskedFor, advice, compared_with_base, few_updates, rounded_updates, unusual_rate

pytestmark = pytest.mark.fast

Curve = list[tuple[int, float]]


def _curve(*losses: float, every: int = 1) -> Curve:
    return [((number + 1) * every, loss) for number, loss in enumerate(losses)]


def _asked(total_steps: int = 50, *, method: MethodConfig | None = None, epochs: int = 5, **train: object) -> AskedFor:
    """A run of so many steps in so many epochs."""
    return AskedFor(
        train=replace(TrainConfig(num_epochs=epochs), **train),  # pyright: ignore[reportArgumentType]
        method=method or LoraConfig(),
        total_steps=total_steps,
        steps_per_epoch=total_steps // epochs,
    )


FALLING = _curve(*[3.0 - 0.02 * step for step in range(50)])
FLAT = _curve(*[2.0] * 50)
EARLY = _curve(*[3.0 - 0.2 * min(step, 4) for step in range(50)])


def test_a_run_whose_losses_fall_together_gets_no_advice():
    assert advice(FALLING, _curve(2.9, 2.7, 2.5, 2.3, 2.1, every=10), _asked()) == []


def test_a_rise_names_both_steps_the_weights_that_are_taken_and_what_to_type():
    (sentence,) = advice(FALLING, _curve(2.5, 2.2, 2.4, 2.5, 2.6, every=10), _asked())
    assert "rose from 2.2000 after step 20 to 2.6000 after step 50" in sentence
    assert "weights of step 20" in sentence
    for cure in ("train.num_epochs=2,", "train.early_stopping_patience=2", "train.learning_rate=0.0001"):
        assert cure in sentence


def test_a_rise_says_where_the_worse_weights_are_taken():
    asked = _asked(select_checkpoint="final", early_stopping_patience=9)
    (sentence,) = advice(FALLING, _curve(2.5, 2.2, 2.6, every=10), asked)
    assert "train.select_checkpoint=best" in sentence
    assert "early_stopping_patience" not in sentence


def test_a_rise_within_the_first_epoch_asks_for_fewer_steps():
    (sentence,) = advice(FALLING, _curve(2.2, 2.4, 2.6, every=10), _asked(epochs=1))
    assert "train.max_steps=10" in sentence and "num_epochs" not in sentence


def test_a_rise_below_one_percent_is_noise():
    assert advice(FALLING, _curve(2.5, 2.3, 2.2, 2.21, every=10), _asked()) == []


def test_losses_that_rise_together_ask_for_smaller_steps():
    rising = _curve(*[2.0] * 25, *[2.0 + 0.01 * step for step in range(25)])
    (sentence,) = advice(rising, _curve(2.0, 1.9, 1.95, 2.0, 2.1, every=10), _asked())
    assert "training loss rose with it" in sentence
    assert "train.learning_rate=4e-05" in sentence and "train.warmup_steps=10" in sentence
    assert "by heart" not in sentence


@pytest.mark.parametrize(
    ("rate", "method", "cure"),
    [
        (1e-7, LoraConfig(), "train.learning_rate=0.0002"),
        (2e-4, LoraConfig(), "train.learning_rate=0.0006"),
        (1e-7, FullConfig(), "train.learning_rate=2e-05"),
    ],
)
def test_flat_losses_ask_for_the_methods_own_rate_or_a_higher_one(rate, method, cure):
    (sentence,) = advice(FLAT, _curve(2.0, 2.0, 2.0, every=10), _asked(learning_rate=rate, method=method))
    assert "stayed flat at 2.0000 from step 10 to 30" in sentence
    assert cure in sentence


def test_what_was_learnt_before_the_first_validation_is_told_from_flat():
    (sentence,) = advice(EARLY, _curve(2.1, 2.1, 2.1, 2.1, 2.1, every=10), _asked())
    assert "learnt by then" in sentence
    assert "train.num_epochs=1" in sentence and "method.rank=32" in sentence
    (sentence,) = advice(EARLY, _curve(2.1, 2.1, 2.1, every=10), _asked(method=FullConfig()))
    assert "method." not in sentence, "full fine-tuning has no rank"


def test_a_training_loss_that_falls_alone_is_told_from_flat():
    validated = _curve(2.5, 2.5, 2.5, 2.5, 2.5, every=10)
    (sentence,) = advice(FALLING, validated, _asked())
    assert "Training loss fell by 0.8000 after step 10 while validation loss stayed at 2.5000" in sentence
    assert "method.dropout=0.3" in sentence
    (sentence,) = advice(FALLING, validated, _asked(method=FullConfig()))
    assert "method.dropout" not in sentence, "full fine-tuning has no dropout"


@pytest.mark.parametrize("end", [4.5, 2.9])
def test_a_loss_that_climbs_back_has_diverged(end):
    losses = [3.0 - 0.04 * step for step in range(25)] + [end] * 25
    (sentence,) = advice(_curve(*losses), _curve(2.4, 2.2, end, end, end, every=10), _asked())
    assert "Training diverged: its loss was 2.9200 at first" in sentence
    assert f"{end:.4f} at the end" in sentence
    assert "train.learning_rate=4e-05 or train.warmup_steps=10" in sentence


def test_an_early_stop_is_said_and_suggests_nothing_where_it_did_its_work():
    asked = _asked(100, early_stopping_patience=2)
    (sentence,) = advice(FALLING[:40], _curve(2.5, 2.2, 2.3, 2.4, every=10), asked)
    assert "Stopped early after step 40 of 100" in sentence
    assert "lowest after step 20 (2.2000)" in sentence
    assert "Try" not in sentence


def test_an_early_stop_without_any_fall_asks_for_a_lower_rate():
    (sentence,) = advice(FALLING[:30], _curve(2.2, 2.3, 2.4, every=10), _asked(100, early_stopping_patience=2))
    assert "never fell" in sentence and "train.learning_rate=0.0001" in sentence


@pytest.mark.parametrize(("num_steps", "warned"), [(29, True), (30, False)])
def test_fewer_than_30_updates_are_too_few(num_steps, warned):
    asked = _asked(num_steps, epochs=1)
    assert bool(few_updates(asked)) is warned
    assert advice(FALLING[:num_steps], [], asked) == few_updates(asked)


@pytest.mark.parametrize(
    ("asked", "cures"),
    [
        (_asked(16, epochs=2), "train.gradient_accumulation_steps=1, train.num_epochs=4 or more examples"),
        (_asked(9, epochs=3), "train.num_epochs=10 or more examples"),
        (_asked(3, epochs=3), "train.gradient_accumulation_steps=1 or more examples"),
        (
            _asked(12, epochs=3, gradient_accumulation_steps=1),
            "train.micro_batch_size=1, train.num_epochs=8 or more examples",
        ),
        (_asked(1, epochs=1, gradient_accumulation_steps=1, micro_batch_size=1), "more examples"),
    ],
)
def test_few_updates_name_what_makes_them_more(asked, cures):
    (sentence,) = few_updates(asked)
    made = "one weight update" if asked.total_steps == 1 else f"{asked.total_steps} weight updates"
    assert sentence == f"Only {made}, too few to judge by (below 30). Try {cures}."


@pytest.mark.parametrize(
    ("asked", "cures"),
    [
        # 16 full steps of 18: as many tokens make 30 of 8,738
        (
            _asked(18, epochs=2, batch_unit="tokens", tokens_per_step=16_384),
            "train.tokens_per_step=8738, train.num_epochs=4 or more examples",
        ),
        # down to the longest example it isn't enough
        (
            replace(_asked(18, epochs=2, batch_unit="tokens", tokens_per_step=16_384), max_seq_len=12_000),
            "train.num_epochs=4 or more examples",
        ),
        # nor can it be had otherwise
        (
            replace(_asked(2, epochs=2, batch_unit="tokens", tokens_per_step=16_384), max_seq_len=2048),
            "train.tokens_per_step=2048 or more examples",
        ),
    ],
)
def test_few_updates_of_steps_of_tokens_name_smaller_ones(asked, cures):
    assert few_updates(asked)[0].endswith(f"(below 30). Try {cures}.")


def test_epochs_of_fewer_steps_than_the_first_are_no_limit_on_steps():
    asked = replace(_asked(18, epochs=2, batch_unit="tokens", tokens_per_step=100), total_steps=17)
    assert "max_steps" not in few_updates(asked)[0]


def test_few_updates_that_were_asked_for_name_the_limit():
    asked = replace(_asked(100, epochs=1, max_steps=3), total_steps=3)
    assert few_updates(asked)[0].endswith("Try train.max_steps=30.")


def test_few_updates_are_not_called_flat():
    sentences = advice(FLAT[:10], _curve(2.0, 2.0, every=5), _asked(10, epochs=1))
    assert len(sentences) == 1 and "Only 10" in sentences[0]


@pytest.mark.parametrize(
    ("method", "rate", "optimizer", "effect"),
    [
        (FullConfig(), 1e-4, "adamw", "may undo"),
        (FullConfig(), 5e-5, "adamw", None),
        (FullConfig(), 1e-7, "adamw_8bit", "next to nothing"),
        (LoraConfig(), 1e-6, "adamw", "next to nothing"),
        (LoraConfig(), 1e-3, "adamw", None),
        (QloraConfig(), 1e-2, "adamw", "may undo"),
        (FullConfig(), 1e-2, "sgd", None),
    ],
)
def test_a_rate_far_from_the_usual_is_noted(method, rate, optimizer, effect):
    sentences = unusual_rate(_asked(method=method, learning_rate=rate, optimizer=optimizer))
    assert (effect is None) == (not sentences)
    assert all(effect in sentence and f"train.learning_rate={rate:g}" in sentence for sentence in sentences)


def test_weights_that_are_too_coarse_for_small_updates_are_warned_of():
    assert rounded_updates(TrainConfig()) == []
    (sentence,) = rounded_updates(TrainConfig(master_dtype="bf16"))
    assert sentence.startswith("train.master_dtype=bf16: is for measuring beside tools that train in bf16; ")
    assert "rounded away, which most are at a rate of 2e-5" in sentence
    weights = torch.linspace(1.0, 2.0, 1000).bfloat16().double()
    assert torch.equal((weights * (1 + 1 / 513)).bfloat16().double(), weights)
    assert ((weights * (1 + 1 / 255)).bfloat16() > weights).all()


@pytest.mark.parametrize(
    ("base", "tuned", "found"),
    [
        (2.0, 1.9, None),
        (2.0, 1.9979, None),
        (2.0, 1.9981, "no better"),
        (2.0, 2.0, "no better"),
        (2.0, 2.1, "worse"),
    ],
)
def test_a_test_loss_that_did_not_fall_is_said(base, tuned, found):
    sentences = compared_with_base(base, tuned, TrainConfig(), LoraConfig())
    assert (found is None) == (not sentences)
    assert all(found in sentence and "Try train.learning_rate=" in sentence for sentence in sentences)


def test_a_test_loss_is_only_stated_where_the_curves_said_what_to_try():
    (sentence,) = compared_with_base(2.0, 2.0, TrainConfig(), LoraConfig(), explained=True)
    assert sentence == "The tuned model is no better than the base model (test loss 2.0000, base model 2.0000)."


def test_nothing_to_judge_is_no_advice():
    assert advice([], [], _asked()) == []


NUM_CURVES = 200
STEP_NOISE = 0.1
"""Relative spread of one step's training loss: each is of other examples."""
VALIDATION_NOISE = 0.002
"""Relative spread of the validation loss, which is of the same examples each time."""


def _noisy(draw: random.Random, kind: str) -> tuple[Curve, Curve, AskedFor]:
    """Curves of one kind with the noise of real ones, five validations among 40 to 500 steps."""
    steps, start, fall = draw.randint(40, 500), draw.uniform(1.5, 4.0), draw.uniform(0.15, 0.5)
    pace = draw.uniform(0.2, 0.5)

    def train(done: float) -> float:
        if kind == "flat":
            return start
        learnt = start * (1 - fall * (1 - math.exp(-done / pace)))
        return learnt + (start * (done - 0.5) if kind == "diverged" and done > 0.5 else 0)

    def validation(done: float) -> float:
        if kind == "rose":
            return train(done) + 0.25 * start * max(0, done - 0.3)
        return train(0.2) if kind == "parted" and done > 0.2 else train(done)

    train_losses = [(step, train(step / steps) * draw.gauss(1, STEP_NOISE)) for step in range(1, steps + 1)]
    at = [round(steps * fifth / 5) for fifth in range(1, 6)]
    validated = [(step, validation(step / steps) * draw.gauss(1, VALIDATION_NOISE)) for step in at]
    return train_losses, validated, _asked(steps, epochs=1)


@pytest.mark.parametrize(
    ("kind", "said", "fewest", "most"),
    [
        ("falling", "", 0, 4),
        ("rose", "Validation loss rose", 196, 200),
        ("flat", "stayed flat", 190, 200),
        ("parted", "what is learnt no longer carries over", 150, 200),
        ("diverged", "diverged", 170, 200),
    ],
)
def test_noise_raises_few_alarms_and_hides_few_faults(kind, said, fewest, most):
    draw = random.Random(f"curves that are {kind}")
    spoken = [advice(*_noisy(draw, kind)) for _ in range(NUM_CURVES)]
    found = [sentences for sentences in spoken if sentences and said in sentences[0]]
    print(f"{kind}: {len(found)} of {NUM_CURVES} said so, {sum(map(bool, spoken))} got some advice")
    assert fewest <= len(found) <= most
