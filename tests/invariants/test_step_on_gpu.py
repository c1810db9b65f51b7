"""What holds of a step on the CPU holds on a GPU, on llmtune's decoder with its kernels, captured or not."""

from dataclasses import replace

import pytest
import torch
from tiny_training import FULL, LORA, LORA_DROPOUT, QLORA_DROPOUT, Recorder, Setup, make_parts, weights_digest

from llmtune.models.fast.decoder import decoder_of
from llmtune.training.captured import choose_capture
from llmtune.training.loop import train, train_step
from llmtune.training.parts import TrainState

pytestmark = pytest.mark.gpu

CUTS = [(8, 1), (4, 2), (1, 8)]
METHODS = pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
FILLED = Setup(micro_batch_size=4, tokens_per_step=160, device="cuda")


def _first_step(folder, setup):
    result = train_step(make_parts(folder, setup), TrainState())
    return float(result.loss), float(result.grad_norm)


@METHODS
@pytest.mark.parametrize(("size", "accumulation"), CUTS)
def test_loss_and_gradient_norm_do_not_depend_on_cut_decoder_or_device(tiny_llama, method, size, accumulation):
    padded = Setup(method, micro_batch_size=8, gradient_accumulation_steps=1, packed=False)
    expected = _first_step(tiny_llama, padded)
    setup = Setup(method, size, accumulation, device="cuda")
    assert decoder_of(make_parts(tiny_llama, setup).model) is not None
    assert _first_step(tiny_llama, setup) == pytest.approx(expected, rel=1e-5)
    assert _first_step(tiny_llama, replace(setup, own_decoder=True)) == pytest.approx(expected, rel=1e-5)


def _run(folder, setup, *, captured):
    parts, recorder = make_parts(folder, setup), Recorder()
    choice = choose_capture(parts, captured, begun=None)
    assert choice.captured is captured, choice.reason
    state = train(parts, TrainState(), [recorder])
    assert state.global_step == parts.settings.schedule.total_steps
    return recorder.steps, weights_digest(parts.model)


@pytest.mark.parametrize("method", [LORA, LORA_DROPOUT, QLORA_DROPOUT, FULL], ids=["lora", "drop", "qlora", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_captured_run_is_the_launched_one(tiny_llama, method, dtype, monkeypatch):
    monkeypatch.setattr("llmtune.training.captured._MOST_PADDING", 1.0)  # a tiny run's micro-batches differ
    setup = replace(FILLED, method=method, master_dtype=dtype)
    launched, weights = _run(tiny_llama, setup, captured=False)
    captured, captured_weights = _run(tiny_llama, setup, captured=True)
    assert len(launched) > 3
    if dtype == torch.float32 and method in (LORA, FULL):
        assert captured == pytest.approx(launched, rel=1e-4)
    again, again_weights = _run(tiny_llama, setup, captured=True)
    assert [loss for loss, _ in captured.values()] == pytest.approx([loss for loss, _ in launched.values()], rel=0.02)
    assert [loss for loss, _ in again.values()] == pytest.approx([loss for loss, _ in captured.values()], rel=2e-3)
    assert weights != make_parts(tiny_llama, setup) and captured_weights and again_weights


def test_steps_of_unlike_sizes_are_not_captured(tiny_llama):
    parts = make_parts(tiny_llama, Setup(device="cuda"))
    choice = choose_capture(parts, "auto", begun=None)
    assert not choice.captured and "train.batch_unit=tokens" in choice.reason
    assert parts.captured is None


def test_a_short_run_is_not_worth_a_capture(tiny_llama, monkeypatch):
    monkeypatch.setattr("llmtune.training.captured._MOST_PADDING", 1.0)
    monkeypatch.setattr("llmtune.training.captured._WORTH", 1e9)
    parts = make_parts(tiny_llama, FILLED)
    choice = choose_capture(parts, "auto", begun=None)
    assert not choice.captured and "not worth" in choice.reason
    assert all(parameter.grad is None for parameter in parts.trainable)
