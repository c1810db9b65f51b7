"""A run that goes on from any of its checkpoints ends with the bits of the run that was never stopped."""

import pytest
from tiny_training import FULL, LORA_DROPOUT, QLORA_DROPOUT, Recorder, Setup, make_parts, weights_digest

from llmtune.runs.layout import RunFolder
from llmtune.training import checkpoint
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.checkpoint import list_checkpoints, load_checkpoint
from llmtune.training.loop import train
from llmtune.training.parts import TrainState

pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")]

LORA_PACKED = Setup(LORA_DROPOUT)
LORA_PADDED = Setup(LORA_DROPOUT, micro_batch_size=4, gradient_accumulation_steps=1, packed=False)
FULL_PADDED = Setup(FULL, packed=False)
FULL_8BIT = Setup(FULL, optimizer="adamw_8bit")
RUNS = {
    "llama, lora, packed": ("tiny_llama", LORA_PACKED),
    "llama, qlora, packed, paged": ("tiny_llama", Setup(QLORA_DROPOUT, optimizer="paged_adamw_8bit")),
    "llama, full, packed, 8-bit state": ("tiny_llama", FULL_8BIT),
    "gpt2 with dropout, lora, padded, no accumulation": ("tiny_gpt2", LORA_PADDED),
    "gpt2 with dropout, full, padded": ("tiny_gpt2", FULL_PADDED),
}


def _straight(model_folder, setup, folder):
    """Train once with a checkpoint after every step."""
    parts, recorder = make_parts(model_folder, setup), Recorder()
    keep_all = CheckpointCallback(RunFolder(folder), CheckpointSettings(1, None, keep=1000))
    train(parts, TrainState(), [recorder, keep_all])
    return weights_digest(parts.model), recorder.steps


def _resumed(model_folder, setup, folder):
    parts, recorder = make_parts(model_folder, setup), Recorder()
    state = load_checkpoint(folder, parts)
    train(parts, state, [recorder])
    return weights_digest(parts.model), recorder.steps


@pytest.mark.parametrize(("model", "setup"), RUNS.values(), ids=RUNS.keys())
def test_every_checkpoint_leads_to_the_same_bits(assets, model, setup, tmp_path):
    digest, steps = _straight(assets / model, setup, tmp_path)
    checkpoints = list_checkpoints(tmp_path / "checkpoints")
    assert len(checkpoints) == 10
    for folder in checkpoints:
        resumed_digest, resumed_steps = _resumed(assets / model, setup, folder)
        assert resumed_digest == digest, folder.name
        assert resumed_steps == {step: steps[step] for step in resumed_steps}
        assert len(resumed_steps) == 10 - checkpoint.checkpoint_step(folder)


def _drop_optimizer(monkeypatch):
    monkeypatch.setattr(checkpoint, "restore_optimizer", lambda *_: None)


def _drop_weights(monkeypatch):
    monkeypatch.setattr("llmtune.methods.lora.LoraMethod.restore", lambda *_: None)


def _drop_dropout_stream(monkeypatch):
    monkeypatch.setattr("llmtune.training.loop.torch.manual_seed", lambda seed: None)


@pytest.mark.parametrize("drop", [_drop_optimizer, _drop_weights, _drop_dropout_stream])
def test_control_a_part_that_is_dropped_shows(tiny_llama, tmp_path, monkeypatch, drop):
    digest, _ = _straight(tiny_llama, LORA_PACKED, tmp_path)
    drop(monkeypatch)
    assert _resumed(tiny_llama, LORA_PACKED, tmp_path / "checkpoints" / "checkpoint-5")[0] != digest


def test_control_a_position_that_is_dropped_shows(tiny_llama, tmp_path):
    digest, _ = _straight(tiny_llama, LORA_PACKED, tmp_path)
    parts = make_parts(tiny_llama, LORA_PACKED)
    state = load_checkpoint(tmp_path / "checkpoints" / "checkpoint-5", parts)
    state.global_step -= 1
    train(parts, state, [])
    assert weights_digest(parts.model) != digest
