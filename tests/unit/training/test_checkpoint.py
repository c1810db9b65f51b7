"""Checkpoints: whole or absent, verified, linked, and the old ones removed only when they may be."""

import copy
import json
import shutil
from collections import namedtuple

import pytest
import torch

from llmtune.errors import RunError, TrainingFault
from llmtune.training import checkpoint
from llmtune.training.checkpoint import (
    link_checkpoint,
    list_checkpoints,
    load_checkpoint,
    newest_intact_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from llmtune.training.loop import train_step
from llmtune.training.parts import TrainState
from llmtune.training.scaler import make_scaler

pytestmark = pytest.mark.fast

STATE = TrainState(
    global_step=3, num_tokens=70, validation_losses=[(2, 1.5), (3, 1.25)], best_validation_loss=1.25, best_step=3,
    should_stop=True,
)  # fmt: skip


@pytest.fixture
def parts(make_parts):
    parts = make_parts()
    train_step(parts, TrainState())
    return parts


def test_weights_optimizer_and_state_come_back(parts, make_parts, tmp_path):
    save_checkpoint(tmp_path / "checkpoint-3", parts, STATE)
    other = make_parts()
    state = load_checkpoint(tmp_path / "checkpoint-3", other)
    expected = copy.deepcopy(STATE)
    expected.should_stop = False
    assert state == expected
    for one, two in zip(parts.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(parts.optimizer.state[one]["exp_avg"], other.optimizer.state[two]["exp_avg"])


def test_the_loss_scale_comes_back(parts, make_parts, tmp_path):
    parts.scaler = make_scaler(parts.device, init_scale=64.0)
    save_checkpoint(tmp_path / "checkpoint-3", parts, STATE)
    other = make_parts()
    with pytest.raises(RunError, match=r"another train\.precision"):
        load_checkpoint(tmp_path / "checkpoint-3", other)
    other.scaler = make_scaler(other.device)
    load_checkpoint(tmp_path / "checkpoint-3", other)
    assert other.scaler.get_scale() == 64.0


def test_only_safetensors_and_json_are_written_and_nothing_is_left_beside(parts, tmp_path):
    save_checkpoint(tmp_path / "checkpoint-3", parts, STATE)
    assert sorted(path.name for path in (tmp_path / "checkpoint-3").iterdir()) == [
        "checkpoint.json", "model.safetensors", "optimizer.json", "optimizer.safetensors", "trainer_state.json",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_any_damage_falls_back_to_the_checkpoint_before_aloud(parts, tmp_path, monkeypatch, name, damage):
    warnings = []
    monkeypatch.setattr(checkpoint, "warn", warnings.append)
    for step in (3, 10):
        save_checkpoint(tmp_path / f"checkpoint-{step}", parts, STATE)
    file = tmp_path / "checkpoint-10" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-1])
    assert newest_intact_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert len(warnings) == 1
    assert "checkpoint-10 is damaged" in warnings[0]
    with pytest.raises(RunError, match="damaged"):
        load_checkpoint(tmp_path / "checkpoint-10", parts)


def test_intact_checkpoints_warn_of_nothing(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "warn", pytest.fail)
    for step in (9, 10):
        save_checkpoint(tmp_path / f"checkpoint-{step}", parts, STATE)
    assert newest_intact_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert newest_intact_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 1}', '{"format_version": 99, "files": {}}'])
def test_a_damaged_or_newer_index_is_damage(parts, tmp_path, content):
    save_checkpoint(tmp_path / "checkpoint-3", parts, STATE)
    (tmp_path / "checkpoint-3" / "checkpoint.json").write_text(content)
    assert newest_intact_checkpoint(tmp_path) is None


@pytest.mark.parametrize("moment", ["save_optimizer", "_write_index", "_fsync"])
def test_a_kill_inside_a_save_leaves_the_checkpoint_before(parts, tmp_path, monkeypatch, moment):
    save_checkpoint(tmp_path / "checkpoint-3", parts, STATE)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, moment, die)
        save_checkpoint(tmp_path / "checkpoint-4", parts, STATE)
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-3"]
    assert newest_intact_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    save_checkpoint(tmp_path / "checkpoint-4", parts, STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(parts, tmp_path):
    save_checkpoint(tmp_path / "checkpoint-3", parts, STATE)
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("x")
    save_checkpoint(tmp_path / "checkpoint-3", parts, STATE)
    assert newest_intact_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


def test_too_little_space_is_told_before_anything_is_written(parts, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(TrainingFault, match=r"checkpoint-3 needs 0\.02 GiB in .*where 0\.00 GiB are free"):
        save_checkpoint(tmp_path / "checkpoint-3", parts, STATE)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_is_told_and_leaves_the_earlier_checkpoint(parts, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "checkpoint-3", parts, STATE)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_optimizer", full)
    with pytest.raises(TrainingFault, match="No space left on device; earlier checkpoints are untouched"):
        save_checkpoint(tmp_path / "checkpoint-4", parts, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_links_are_relative_and_can_be_moved_to_another_checkpoint(tmp_path):
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        link_checkpoint(tmp_path / "checkpoint-best", tmp_path / f"checkpoint-{step}")
    assert (tmp_path / "checkpoint-best").readlink().name == "checkpoint-2"


def test_removal_keeps_the_newest_by_number_and_what_a_link_points_to(tmp_path):
    for step in (2, 9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    link_checkpoint(tmp_path / "checkpoint-best", tmp_path / "checkpoint-2")
    remove_old_checkpoints(tmp_path, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-11", "checkpoint-2", "checkpoint-best"]


def test_the_index_lists_every_file_but_itself(parts, tmp_path):
    save_checkpoint(tmp_path / "checkpoint-3", parts, STATE)
    index = json.loads((tmp_path / "checkpoint-3" / "checkpoint.json").read_text())
    assert index["step"] == 3
    assert set(index["files"]) == {
        "model.safetensors", "optimizer.json", "optimizer.safetensors", "trainer_state.json",
    }  # fmt: skip
