"""Dropout depends on seed, step and process alone; whatever else is drawn, set or done before moves nothing."""

import hashlib
from dataclasses import replace

import pytest
import torch
from tiny_training import CPU, LORA_DROPOUT, Examples, Setup, make_parts

from llmtune.config.method import LoraConfig
from llmtune.evaluation.perplexity import LossSettings, evaluate_loss
from llmtune.training.loop import train_step
from llmtune.training.parts import TrainState

pytestmark = pytest.mark.fast

BASE = Setup(LORA_DROPOUT)
TWO = replace(BASE, num_processes=2, micro_batch_size=1)


def stream_at(parts, step):
    """Digest of the random state as the first forward pass of a step begins, and the step's loss."""
    states = []

    def note(module, inputs):
        states.append(hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())

    hook = parts.model.get_input_embeddings().register_forward_pre_hook(note)
    loss = float(train_step(parts, TrainState(global_step=step)).loss)
    hook.remove()
    return states[0], loss


@pytest.fixture
def stream(tiny_gpt2):
    """A function that gives the stream of a step of fresh parts."""
    stream_at(make_parts(tiny_gpt2, BASE), 0)  # how losses are computed is chosen before the first

    def find(setup=BASE, step=3, before=lambda parts: None):
        parts = make_parts(tiny_gpt2, setup)
        before(parts)
        return stream_at(parts, step)

    return find


def evaluated(parts):
    how = LossSettings(
        batch_tokens=120, packed=parts.settings.packed, pad_token_id=2, precision=parts.precision, device=CPU
    )
    evaluate_loss(parts.model, Examples(6, seed=8), how)


NO_MATTER = {
    "draws elsewhere": lambda parts: torch.rand(1000),
    "another seed of torch's": lambda parts: torch.manual_seed(77),
    "an evaluation": evaluated,
    "a mode": lambda parts: parts.model.eval(),
}


@pytest.mark.parametrize("what", NO_MATTER)
def test_what_is_done_before_a_step_moves_neither_its_stream_nor_its_loss(stream, what):
    assert stream(before=NO_MATTER[what]) == stream()


def test_the_stream_of_a_step_is_the_same_whichever_steps_went_before(stream):
    def three_steps(parts):
        for step in range(3):
            train_step(parts, TrainState(global_step=step))

    assert stream(before=three_steps)[0] == stream()[0]


SETTINGS = {
    "learning rate": replace(BASE, learning_rate=1e-4),
    "cut of the step": replace(BASE, micro_batch_size=1, gradient_accumulation_steps=4),
    "layout": replace(BASE, packed=False),
    "method": replace(BASE, method=LoraConfig(rank=2, alpha=2.0, dropout=0.5)),
    "number of examples and epochs": replace(BASE, num_examples=40, num_epochs=7),
    "number of processes": TWO,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_other_setting_moves_the_stream(stream, setting):
    assert stream(SETTINGS[setting])[0] == stream()[0]


def test_seed_step_and_process_each_have_a_stream_of_their_own(stream, monkeypatch):
    found = [stream(replace(BASE, seed=seed), step)[0] for seed in (1, 2) for step in (3, 4)]
    monkeypatch.setenv("RANK", "1")
    found.append(stream(TWO)[0])
    assert len(set(found)) == 5


def test_a_second_micro_batch_drops_others_than_the_first(tiny_gpt2):
    parts = make_parts(tiny_gpt2, replace(BASE, num_examples=2, micro_batch_size=1))
    parts.table._ids[1] = parts.table._ids[0]
    parts.table._labels[1] = parts.table._labels[0]
    for counts in (parts.table.num_tokens, parts.table.num_supervised_tokens):
        counts[1] = counts[0]
    outputs = []
    parts.model.get_base_model().transformer.register_forward_hook(
        lambda module, inputs, output: outputs.append(output.last_hidden_state.detach())
    )
    train_step(parts, TrainState())
    first, second = outputs[-2:]
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_control_a_step_that_sets_no_seed_is_told_apart(stream, monkeypatch):
    expected = stream()
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    found = stream(before=lambda parts: torch.rand(1000))
    assert found[0] != expected[0]
    assert found[1] != expected[1]
