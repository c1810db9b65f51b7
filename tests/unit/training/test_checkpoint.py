"""Checkpoints: whole or absent, verified, linked, and the old ones removed only when they may be."""

import copy
import json
import shutil
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from llmtune.errors import RunError, TrainingFault
from llmtune.training import checkpoint
from llmtune.training.checkpoint import (
    check_free_space,
    link_checkpoint,
    list_checkpoints,
    load_checkpoint,
    newest_intact_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from llmtune.training.loop import train_step
from llmtune.training.memory import optimizer_bytes
from llmtune.training.parts import TrainState
from llmtune.training.scaler import make_scaler
from llmtune.training.snapshot import num_bytes, take_snapshot

pytestmark = pytest.mark.fast

STATE = TrainState(
    global_step=3, num_tokens=70, num_supervised_tokens=41, seconds=2.5, num_overflows=2, overflows_in_a_row=1,
    validation_losses=[(2, 1.5), (3, 1.25)], best_validation_loss=1.25, best_step=3, validations_without_improvement=1,
    should_stop=True,
)  # fmt: skip


@pytest.fixture
def parts(make_parts):
    parts = make_parts()
    train_step(parts, TrainState())
    return parts


def test_weights_optimizer_and_state_come_back(parts, make_parts, tmp_path):
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))
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
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))
    other = make_parts()
    with pytest.raises(RunError, match=r"another train\.precision"):
        load_checkpoint(tmp_path / "checkpoint-3", other)
    other.scaler = make_scaler(other.device)
    load_checkpoint(tmp_path / "checkpoint-3", other)
    assert other.scaler.get_scale() == 64.0


def test_only_safetensors_and_json_are_written_and_nothing_is_left_beside(parts, tmp_path):
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))
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
        save_checkpoint(tmp_path / f"checkpoint-{step}", take_snapshot(parts, replace(STATE, global_step=step)))
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


def test_to_go_on_reads_each_file_for_its_digest_once(parts, make_parts, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))
    digest, read = checkpoint.sha256_of, []
    monkeypatch.setattr(checkpoint, "sha256_of", lambda path: read.append(path.name) or digest(path))
    newest = newest_intact_checkpoint(tmp_path)
    assert newest is not None
    load_checkpoint(newest, make_parts())
    assert sorted(read) == ["model.safetensors", "optimizer.json", "optimizer.safetensors", "trainer_state.json"]


def test_intact_checkpoints_warn_of_nothing(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "warn", pytest.fail)
    for step in (9, 10):
        save_checkpoint(tmp_path / f"checkpoint-{step}", take_snapshot(parts, replace(STATE, global_step=step)))
    assert newest_intact_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert newest_intact_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 1}', '{"format_version": 99, "files": {}}'])
def test_a_damaged_or_newer_index_is_damage(parts, tmp_path, content):
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))
    (tmp_path / "checkpoint-3" / "checkpoint.json").write_text(content)
    assert newest_intact_checkpoint(tmp_path) is None


@pytest.mark.parametrize("moment", ["save_optimizer", "_write_index", "_fsync"])
def test_a_kill_inside_a_save_leaves_the_checkpoint_before(parts, tmp_path, monkeypatch, moment):
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, moment, die)
        save_checkpoint(tmp_path / "checkpoint-4", take_snapshot(parts, replace(STATE, global_step=4)))
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-3"]
    assert newest_intact_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    save_checkpoint(tmp_path / "checkpoint-4", take_snapshot(parts, replace(STATE, global_step=4)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(parts, tmp_path):
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("x")
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))
    assert newest_intact_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


def test_too_little_space_is_told(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**31, 2**30, 2**30))
    check_free_space(tmp_path, 2**30 - 2**24, "two checkpoints")
    with pytest.raises(TrainingFault, match=r"^two checkpoints take 1\.00 GiB in .*, where 1\.00 GiB are free; make"):
        check_free_space(tmp_path, 2**30 - 2**24 + 1, "two checkpoints")


def test_a_failed_write_is_told_and_leaves_the_earlier_checkpoint(parts, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_optimizer", full)
    with pytest.raises(TrainingFault, match="No space left on device; earlier checkpoints are untouched"):
        save_checkpoint(tmp_path / "checkpoint-4", take_snapshot(parts, replace(STATE, global_step=4)))
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


@pytest.fixture(scope="module")
def die_at_change():
    """A function that sets before which change of files from now on to die; None lives on."""
    left = [None, 0]

    def hook(event, _):
        if left[0] is not None and event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink"}:
            left[1] += 1
            if left[1] == left[0]:
                raise KeyboardInterrupt

    def set_change(change):
        left[:] = [change, 0]

    sys.addaudithook(hook)
    yield set_change
    left[0] = None


def _deaths_that_leave_none(parts, folder, die_at_change):
    """Die before each change of files in turn, from the start of a save to the end of the removal, keeping one.

    Returns:
        How many changes there are, and those before which a death left no whole checkpoint or link.
    """
    bad = []
    change, died, run = 0, True, folder
    while died:
        change += 1
        run = folder / str(change)
        save_checkpoint(run / "checkpoint-3", take_snapshot(parts, STATE))
        link_checkpoint(run / "checkpoint-final", run / "checkpoint-3")
        die_at_change(change)
        try:
            save_checkpoint(run / "checkpoint-4", take_snapshot(parts, replace(STATE, global_step=4)))
            link_checkpoint(run / "checkpoint-final", run / "checkpoint-4")
            remove_old_checkpoints(run, keep=1)
            died = False
        except KeyboardInterrupt:
            died = True
        die_at_change(None)
        damaged = any(checkpoint.find_damage(path) for path in list_checkpoints(run))
        if newest_intact_checkpoint(run) is None or not (run / "checkpoint-final").exists() or damaged:
            bad.append(change)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-4", "checkpoint-final"]
    return change - 1, bad


def test_keeping_one_never_leaves_none_wherever_it_is_killed(parts, tmp_path, die_at_change):
    num_changes, bad = _deaths_that_leave_none(parts, tmp_path, die_at_change)
    print(f"{num_changes} changes of files in a save and a removal: a whole checkpoint after a death before each")
    assert num_changes > 20
    assert bad == []


def test_control_removal_before_the_save_leaves_none(parts, tmp_path, monkeypatch, die_at_change):
    def remove_first(checkpoints):
        checkpoints.mkdir(exist_ok=True)
        for path in list_checkpoints(checkpoints):
            if path.name != "checkpoint-4":
                shutil.rmtree(path)

    monkeypatch.setattr(checkpoint, "clear_leftovers", remove_first)
    _, bad = _deaths_that_leave_none(parts, tmp_path, die_at_change)
    assert bad


def test_damaged_checkpoints_of_later_steps_dont_push_out_the_one_just_saved(parts, tmp_path):
    for step in (3, 10):
        save_checkpoint(tmp_path / f"checkpoint-{step}", take_snapshot(parts, replace(STATE, global_step=step)))
    (tmp_path / "checkpoint-10" / "optimizer.safetensors").unlink()
    (tmp_path / "checkpoint-12").symlink_to("nowhere")
    save_checkpoint(tmp_path / "checkpoint-4", take_snapshot(parts, replace(STATE, global_step=4)))
    remove_old_checkpoints(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize("put", [lambda path: path.write_text("x"), lambda path: path.symlink_to("nowhere")])
def test_what_isnt_a_folder_under_a_checkpoints_name_is_replaced(parts, tmp_path, put):
    put(tmp_path / "checkpoint-3")
    put(tmp_path / ".checkpoint-3.tmp")
    put(tmp_path / ".checkpoint-3.old")
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert newest_intact_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


def test_a_folder_that_cant_be_made_is_told(parts, tmp_path):
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(TrainingFault, match=r"checkpoint-3 could not be saved: .*File exists"):
        save_checkpoint(tmp_path / "checkpoints" / "checkpoint-3", take_snapshot(parts, STATE))


def test_the_index_lists_every_file_but_itself(parts, tmp_path):
    save_checkpoint(tmp_path / "checkpoint-3", take_snapshot(parts, STATE))
    index = json.loads((tmp_path / "checkpoint-3" / "checkpoint.json").read_text())
    assert index["step"] == 3
    assert set(index["files"]) == {
        "model.safetensors", "optimizer.json", "optimizer.safetensors", "trainer_state.json",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_size_of_a_checkpoint_is_known_before_the_first_step(make_parts, optimizer, dtype):
    parts = make_parts(optimizer=optimizer)
    parts.model.to(dtype)
    before = num_bytes(parts, optimizer_bytes(optimizer, dtype))
    train_step(parts, TrainState())
    assert before == pytest.approx(num_bytes(parts), abs=4 * len(parts.trainable))
    assert num_bytes(parts) < sum(tensor.nbytes for tensor in parts.trainable) * 3.2


def test_a_copy_doesnt_change_with_the_model_and_shares_what_the_model_shares(make_parts):
    parts = make_parts()
    parts.model.other = parts.model.head
    copied, own = take_snapshot(parts, STATE, copied=True), take_snapshot(parts, STATE)
    weights, live = copied.save_weights.keywords["weights"], own.save_weights.keywords["weights"]
    before = live["head.weight"].clone()
    with torch.no_grad():
        parts.model.head.weight.add_(1)
    assert torch.equal(weights["head.weight"], before) and not torch.equal(live["head.weight"], before)
    assert weights["head.weight"].data_ptr() == weights["other.weight"].data_ptr()
    assert weights["head.weight"].data_ptr() != weights["head.bias"].data_ptr()
