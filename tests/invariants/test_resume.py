"""A run that goes on from any of its checkpoints ends with the bits of the run that was never stopped."""

import itertools
from dataclasses import fields, replace

import pytest
import torch
from tiny_training import FULL, LORA_DROPOUT, QLORA_DROPOUT, Setup, make_parts, resume, train_to_the_end

from llmtune.data.plan import StepPlan
from llmtune.errors import TrainingFault
from llmtune.training import checkpoint
from llmtune.training.checkpoint import checkpoint_step, list_checkpoints, load_checkpoint
from llmtune.training.parts import TrainState

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")

LORA_PACKED = Setup(LORA_DROPOUT)
LORA_PADDED = Setup(LORA_DROPOUT, micro_batch_size=4, gradient_accumulation_steps=1, packed=False)
FULL_PADDED = Setup(FULL, packed=False)
FULL_8BIT = Setup(FULL, optimizer="adamw_8bit")
OVERFLOWING = Setup(LORA_DROPOUT, loss_scale=2.0**23, seed=2)
"""Its first steps are skipped until the scale is low enough."""
BF16 = {"master_dtype": torch.bfloat16}
RUNS = {
    "llama, lora, packed": ("tiny_llama", LORA_PACKED),
    "llama, qlora, packed, paged": ("tiny_llama", Setup(QLORA_DROPOUT, optimizer="paged_adamw_8bit")),
    "llama, full, packed, 8-bit state": ("tiny_llama", FULL_8BIT),
    "llama, lora, packed, loss scaler": ("tiny_llama", OVERFLOWING),
    "llama, lora, packed, bf16 masters": ("tiny_llama", Setup(LORA_DROPOUT, **BF16)),
    "llama, full, packed, bf16 masters": ("tiny_llama", Setup(FULL, **BF16)),
    "gpt2 with dropout, lora, padded, no accumulation": ("tiny_gpt2", LORA_PADDED),
    "gpt2 with dropout, full, padded": ("tiny_gpt2", FULL_PADDED),
    "gpt2 with dropout, qlora, padded, bf16 masters, 8-bit state": (
        "tiny_gpt2",
        Setup(QLORA_DROPOUT, packed=False, optimizer="adamw_8bit", **BF16),
    ),
}
METHODS = {"lora": LORA_DROPOUT, "qlora": QLORA_DROPOUT, "full": FULL}
MIDDLE = 5


def _straight(model_folder, setup, folder):
    """Train once with a checkpoint after every step."""
    return train_to_the_end(make_parts(model_folder, setup), TrainState(), folder)


def _check_every_step(model_folder, setup, folder):
    """Go on from each checkpoint of a run, and compare; how many were equal."""
    straight = _straight(model_folder, setup, folder / "straight")
    checkpoints = list_checkpoints(folder / "straight" / "checkpoints")
    plan, taken = make_parts(model_folder, setup).plan, {}
    for step, indices in straight.examples.items():
        taken.setdefault(plan.step(step - 1, 0).epoch, []).extend(indices)
    every = [sorted(indices) for indices in taken.values()]
    assert every == [list(range(setup.num_examples))] * setup.num_epochs, "each example once an epoch"
    for start in checkpoints:
        resumed = resume(model_folder, setup, start, folder / "resumed")
        assert resumed == straight.after(checkpoint_step(start)), start.name
    return len(checkpoints)


@pytest.mark.fast
@pytest.mark.parametrize(("model", "setup"), RUNS.values(), ids=RUNS.keys())
def test_every_checkpoint_leads_to_the_same_bits(assets, model, setup, tmp_path):
    count = _check_every_step(assets / model, setup, tmp_path)
    print(f"{count} of {count} steps: equal weights, losses, examples and state after a resume")
    assert count == 10


FILLED = Setup(LORA_DROPOUT, num_examples=17, tokens_per_step=70)
"""Its epochs have 6 and 7 steps."""


@pytest.mark.parametrize(
    "packed", [pytest.param(True, id="packed", marks=pytest.mark.fast), pytest.param(False, id="padded")]
)
def test_every_checkpoint_of_steps_of_tokens_leads_to_the_same_bits(tiny_llama, packed, tmp_path):
    count = _check_every_step(tiny_llama, replace(FILLED, packed=packed), tmp_path)
    print(f"{count} of {count} steps: equal weights, losses, examples and state after a resume")
    assert count == 13


@pytest.mark.fast
def test_control_epochs_of_equally_many_steps_would_show(tiny_llama, tmp_path, monkeypatch):
    straight = _straight(tiny_llama, FILLED, tmp_path / "straight")
    monkeypatch.setattr(StepPlan, "_place", lambda plan, step: divmod(step, plan.steps_per_epoch))
    start = tmp_path / "straight" / "checkpoints" / "checkpoint-11"
    assert resume(tiny_llama, FILLED, start, tmp_path / "resumed") != straight.after(11)


LONG_RUNS = [
    *itertools.product(["tiny_llama"], METHODS, (1, 2), ("packed", "padded")),
    *itertools.product(["tiny_gpt2"], METHODS, (1, 2), ("padded",)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method", "accumulation", "rows"), LONG_RUNS)
def test_every_step_of_two_long_epochs_leads_to_the_same_bits(assets, model, method, accumulation, rows, tmp_path):
    setup = Setup(
        METHODS[method],
        micro_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        packed=rows == "packed",
        num_examples=57,
    )
    count = _check_every_step(assets / model, setup, tmp_path)
    print(f"{model}, {method}, accumulation {accumulation}, {rows}: {count} of {count} steps equal after a resume")
    assert count == 30


def _drop_optimizer(monkeypatch):
    monkeypatch.setattr(checkpoint, "restore_optimizer", lambda *_: None)


def _drop_weights(monkeypatch):
    monkeypatch.setattr("llmtune.methods.lora.LoraMethod.restore", lambda *_: None)


def _drop_dropout_stream(monkeypatch):
    monkeypatch.setattr("llmtune.training.loop.torch.manual_seed", lambda seed: None)


def _drop_scaler(monkeypatch):
    monkeypatch.setattr("torch.amp.GradScaler.load_state_dict", lambda *_: None)


@pytest.mark.fast
@pytest.mark.parametrize("drop", [_drop_optimizer, _drop_weights, _drop_dropout_stream, _drop_scaler])
def test_control_a_part_that_is_dropped_shows(tiny_llama, tmp_path, monkeypatch, drop):
    setup = OVERFLOWING if drop is _drop_scaler else LORA_PACKED
    straight = _straight(tiny_llama, setup, tmp_path / "straight")
    drop(monkeypatch)
    start = tmp_path / "straight" / "checkpoints" / f"checkpoint-{MIDDLE}"
    assert resume(tiny_llama, setup, start, tmp_path / "resumed").weights != straight.weights


NOT_DROPPED = {
    "overflows_in_a_row",  # has a test of its own below
    "seconds",  # wall time is never equal
    "should_stop",  # isn't saved
}
STATE = [field for field in fields(TrainState) if field.name not in NOT_DROPPED]


@pytest.mark.fast
@pytest.mark.parametrize("field", STATE, ids=lambda field: field.name)
def test_control_a_part_of_the_state_that_is_dropped_shows(tiny_llama, tmp_path, field):
    straight = _straight(tiny_llama, OVERFLOWING, tmp_path / "straight")
    parts = make_parts(tiny_llama, OVERFLOWING)
    state = load_checkpoint(tmp_path / "straight" / "checkpoints" / f"checkpoint-{_telling_step(straight)}", parts)
    assert getattr(state, field.name) != getattr(TrainState(), field.name), "the control has something to drop"
    setattr(state, field.name, getattr(TrainState(), field.name))
    dropped = train_to_the_end(parts, state, tmp_path / "resumed")
    assert (dropped.weights, dropped.state) != (straight.weights, straight.state)


def _telling_step(straight):
    """A step after the best one and before the last."""
    print(straight.state["validation_losses"], straight.state["best_step"], straight.state["num_overflows"])
    step = straight.state["best_step"] + 1
    assert step < len(straight.steps)
    return step


@pytest.mark.fast
def test_overflows_are_counted_on_after_a_resume(tiny_llama, tmp_path):
    """Ten in a row are a fault, also where a resume lies between them."""
    setup = Setup(LORA_DROPOUT, loss_scale=2.0**60)
    with pytest.raises(TrainingFault, match=r"^step 10:"):
        _straight(tiny_llama, setup, tmp_path / "straight")
    start = tmp_path / "straight" / "checkpoints" / "checkpoint-4"
    with pytest.raises(TrainingFault, match=r"^step 10:"):
        resume(tiny_llama, setup, start, tmp_path / "resumed")
