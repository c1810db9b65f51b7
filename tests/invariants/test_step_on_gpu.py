"""What holds of a step on the CPU holds on a GPU, on llmtune's decoder with its kernels, captured or not."""

from dataclasses import replace

import pytest
from tiny_training import FULL, LORA, LORA_DROPOUT, QLORA_DROPOUT, Recorder, Setup, make_parts

from llmtune.models import decoding
from llmtune.models.fast.decoder import decoder_of
from llmtune.training import captured
from llmtune.training.captured import choose_capture
from llmtune.training.loop import train, train_step
from llmtune.training.parts import TrainState

pytestmark = pytest.mark.gpu

CUTS = [(8, 1), (4, 2), (1, 8)]
METHODS = pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
FILLED = Setup(micro_batch_size=4, tokens_per_step=160, device="cuda", precision="bf16")


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


def _run(folder, setup, wanted):
    parts, recorder = make_parts(folder, setup), Recorder()
    choice = choose_capture(parts, wanted, begun=None)
    assert choice.captured is wanted, choice.reason
    state = train(parts, TrainState(), [recorder])
    assert state.global_step == parts.settings.schedule.total_steps
    return recorder.steps


@pytest.fixture
def chosen_in_any_case(monkeypatch):
    """A tiny model rounds more than its decoder is allowed to differ, and its micro-batches differ in size."""
    monkeypatch.setattr(decoding, "_TOLERANCE", dict.fromkeys(decoding._TOLERANCE, 0.1))
    monkeypatch.setattr(captured, "_MOST_PADDING", 1.0)


@pytest.mark.parametrize("method", [LORA, QLORA_DROPOUT, FULL], ids=["lora", "qlora", "full"])
@pytest.mark.usefixtures("chosen_in_any_case")
def test_a_captured_run_is_the_launched_one(tiny_llama, method):
    setup = replace(FILLED, method=method)
    launched, captured_ones = (_run(tiny_llama, setup, wanted) for wanted in (False, True))
    assert len(launched) > 3
    first, last = (next(iter(captured_ones)), max(captured_ones))
    if method != QLORA_DROPOUT:  # a captured pass draws elsewhere in torch's stream
        assert captured_ones[first] == pytest.approx(launched[first], rel=1e-3)
    assert captured_ones[last][0] == pytest.approx(launched[last][0], rel=0.03)


@pytest.mark.usefixtures("chosen_in_any_case")
def test_each_replay_drops_other_inputs_and_the_same_ones_in_the_same_step(tiny_llama):
    setup = replace(FILLED, method=LORA_DROPOUT, learning_rate=1e-12)
    once, again = (_run(tiny_llama, setup, True) for _ in range(2))
    assert once == pytest.approx(again, rel=1e-5)
    still = _run(tiny_llama, replace(setup, method=LORA), True)
    differences = {round(once[number][1] / still[number][1], 5) for number in once}
    assert len(differences) == len(once)


def test_steps_of_unlike_sizes_are_not_captured(tiny_llama, monkeypatch):
    monkeypatch.setattr(decoding, "_TOLERANCE", dict.fromkeys(decoding._TOLERANCE, 0.1))
    parts = make_parts(tiny_llama, replace(FILLED, tokens_per_step=None))
    choice = choose_capture(parts, "auto", begun=None)
    assert not choice.captured and "train.batch_unit=tokens" in choice.reason
    assert parts.captured is None


@pytest.mark.usefixtures("chosen_in_any_case")
def test_a_short_run_is_not_worth_a_capture(tiny_llama, monkeypatch):
    monkeypatch.setattr(captured, "_WORTH", 1e9)
    parts = make_parts(tiny_llama, FILLED)
    choice = choose_capture(parts, "auto", begun=None)
    assert not choice.captured and "not worth" in choice.reason
    assert all(parameter.grad is None for parameter in parts.trainable)
