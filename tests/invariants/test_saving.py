"""Saving beside the training: the same files as where it waits, nothing lost on any way out, never no checkpoint."""

import json
import shutil
import threading
import time

import pytest
from tiny_training import FULL, LORA_DROPOUT, QLORA_DROPOUT, Setup, make_parts, resume, train_to_the_end

from llmtune.errors import TrainingFault
from llmtune.runs.layout import RunFolder
from llmtune.training import checkpoint, snapshot
from llmtune.training.callbacks import checkpointing
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.checkpoint import find_damage, list_checkpoints, load_checkpoint, newest_intact_checkpoint
from llmtune.training.loop import train
from llmtune.training.parts import TrainState
from llmtune.training.snapshot import take_snapshot

pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")]

LORA = Setup(LORA_DROPOUT)
SETUPS = {
    "llama, lora": ("tiny_llama", LORA),
    "llama, qlora, paged": ("tiny_llama", Setup(QLORA_DROPOUT, optimizer="paged_adamw_8bit")),
    "llama, tied head, full, 8-bit state": ("tiny_llama", Setup(FULL, optimizer="adamw_8bit")),
    "gpt2, full, loss scaler": ("tiny_gpt2", Setup(FULL, packed=False, loss_scale=2.0**23)),
}


def _content(folder):
    """The digest of every file of every checkpoint, and the state less what differs between two runs."""
    found = {}
    for path in list_checkpoints(folder / "checkpoints"):
        files = json.loads((path / "checkpoint.json").read_text())["files"]
        state = json.loads((path / "trainer_state.json").read_text())
        del files["trainer_state.json"], state["state"]["seconds"]
        if "adapter_config.json" in files:  # lists the adapted layers in no order
            files["adapter_config.json"] = None
        found[path.name] = files, state
    return found


def _train(model, setup, folder, monkeypatch, *, beside, **named):
    monkeypatch.setattr(checkpointing, "copy_fits", lambda size: beside)
    return train_to_the_end(make_parts(model, setup), TrainState(), folder, **named)


@pytest.mark.parametrize(("model", "setup"), SETUPS.values(), ids=SETUPS.keys())
def test_the_same_files_whether_training_waits_or_not(assets, tmp_path, monkeypatch, model, setup):
    beside = _train(assets / model, setup, tmp_path / "beside", monkeypatch, beside=True)
    waiting = _train(assets / model, setup, tmp_path / "waiting", monkeypatch, beside=False)
    assert beside == waiting
    assert _content(tmp_path / "beside") == _content(tmp_path / "waiting")
    assert len(_content(tmp_path / "beside")) == 10


def _slow(monkeypatch, seconds):
    """Make every save of weights wait first, so that the training runs on while one is under way."""
    rename = checkpoint._write_index

    def late(*arguments):
        time.sleep(seconds)
        rename(*arguments)

    monkeypatch.setattr(checkpoint, "_write_index", late)


def test_what_is_written_is_of_the_step_however_long_it_takes(tiny_llama, tmp_path, monkeypatch):
    _train(tiny_llama, LORA, tmp_path / "quick", monkeypatch, beside=False, every_steps=5)
    save_weights = checkpoint.save_optimizer
    monkeypatch.setattr(checkpoint, "save_optimizer", lambda *a: (time.sleep(0.3), save_weights(*a)))
    _train(tiny_llama, LORA, tmp_path / "slow", monkeypatch, beside=True, every_steps=5)
    assert _content(tmp_path / "slow") == _content(tmp_path / "quick")


def test_control_without_a_copy_another_step_is_written(tiny_llama, tmp_path, monkeypatch):
    _train(tiny_llama, LORA, tmp_path / "quick", monkeypatch, beside=False, every_steps=5)
    save_weights = checkpoint.save_optimizer
    monkeypatch.setattr(checkpoint, "save_optimizer", lambda *a: (time.sleep(0.3), save_weights(*a)))
    monkeypatch.setattr(snapshot, "_copied", lambda tensor, copies: tensor.detach())
    _train(tiny_llama, LORA, tmp_path / "slow", monkeypatch, beside=True, every_steps=5)
    assert _content(tmp_path / "slow") != _content(tmp_path / "quick")


def test_one_save_at_a_time_and_training_runs_on_meanwhile(tiny_llama, tmp_path, monkeypatch):
    under_way, most, threads = [], [], set()
    save = checkpointing.save_checkpoint

    def watched(folder, *arguments):
        under_way.append(folder.name)
        most.append(len(under_way))
        threads.add(threading.current_thread())
        time.sleep(0.05)
        save(folder, *arguments)
        under_way.remove(folder.name)

    monkeypatch.setattr(checkpointing, "save_checkpoint", watched)
    _train(tiny_llama, LORA, tmp_path, monkeypatch, beside=True)
    assert (len(most), max(most)) == (10, 1)
    assert threading.main_thread() not in threads and len(threads) == 1


class Ending:
    """Raises after a step."""

    def __init__(self, step, error):
        self._step, self._error = step, error

    def on_train_start(self, parts, state): ...

    def on_step_end(self, parts, state, result):
        if state.global_step == self._step:
            raise self._error

    def on_train_end(self, parts, state): ...


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), RuntimeError("a bug")], ids=repr)
def test_the_save_under_way_is_finished_however_training_ends(tiny_llama, tmp_path, monkeypatch, error):
    _slow(monkeypatch, 0.3)
    with pytest.raises(type(error)):
        _train(tiny_llama, LORA, tmp_path, monkeypatch, beside=True, more=[Ending(4, error)])
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")][-1] == "checkpoint-4"
    assert not any(find_damage(path) for path in list_checkpoints(tmp_path / "checkpoints"))
    assert not list((tmp_path / "checkpoints").glob(".*"))


def _failing_at(monkeypatch, step):
    """Make the save of one step fail, late."""
    write = checkpoint._write_index

    def fail(folder, number):
        if number == step:
            time.sleep(0.1)
            raise OSError(28, "No space left on device")
        write(folder, number)

    monkeypatch.setattr(checkpoint, "_write_index", fail)


@pytest.mark.parametrize("step", [4, 9, 10], ids=lambda step: f"checkpoint-{step}")
def test_a_failure_beside_the_training_ends_it_and_the_run_goes_on(tiny_llama, tmp_path, monkeypatch, step):
    straight = _train(tiny_llama, LORA, tmp_path / "straight", monkeypatch, beside=True)
    with monkeypatch.context() as patch:
        _failing_at(patch, step)
        with pytest.raises(
            TrainingFault, match=rf"^checkpoint-{step} could not be saved: .*No space left .* train run="
        ):
            _train(tiny_llama, LORA, tmp_path / "run", patch, beside=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    newest = newest_intact_checkpoint(checkpoints)
    assert newest == checkpoints / f"checkpoint-{step - 1}"
    assert not list(checkpoints.glob(".*")) and not (checkpoints / "checkpoint-final").exists()
    assert resume(tiny_llama, LORA, newest, tmp_path / "run") == straight.after(step - 1)


def test_a_failure_after_another_error_is_said_and_doesnt_hide_it(tiny_llama, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(checkpointing, "warn", said.append)
    _failing_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        _train(tiny_llama, LORA, tmp_path, monkeypatch, beside=True, more=[Ending(4, KeyboardInterrupt())])
    assert len(said) == 1 and said[0].startswith("checkpoint-4 could not be saved: ")


def test_without_memory_for_a_copy_training_waits_and_says_so_once(tiny_llama, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(checkpointing, "say", said.append)
    _train(tiny_llama, LORA, tmp_path, monkeypatch, beside=False)
    assert len(said) == 1 and said[0].startswith("memory is short of ")


def test_a_copy_must_leave_as_much_memory_as_it_takes(monkeypatch):
    monkeypatch.setattr(snapshot, "_available_memory", lambda: 1000)
    assert snapshot.copy_fits(500) and not snapshot.copy_fits(501)


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(snapshot, "_CGROUP", tmp_path)
    free = snapshot._available_memory()
    for name, text in {"max": "5000000\n", "current": "3000000\n", "stat": "anon 1\ninactive_file 500000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert snapshot._available_memory() == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert snapshot._available_memory() == pytest.approx(free, rel=0.5)


def _damaged_run(tiny_llama, straight, folder, steps, damaged):
    shutil.copytree(straight / "checkpoints" / "checkpoint-2", folder / "checkpoints" / "checkpoint-2")
    for step in steps:
        shutil.copytree(straight / "checkpoints" / f"checkpoint-{step}", folder / "checkpoints" / f"checkpoint-{step}")
    for step in damaged:
        (folder / "checkpoints" / f"checkpoint-{step}" / "optimizer.safetensors").write_bytes(b"half")


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_take_no_whole_ones_place(tiny_llama, tmp_path, monkeypatch, keep):
    """After falling back behind a damaged 5 and 7, a save of 6 or 8 keeps as many whole ones as are asked for."""
    whole_after = []
    save = checkpointing.remove_old_checkpoints

    def look(checkpoints, number):
        save(checkpoints, number)
        whole_after.append([path.name for path in list_checkpoints(checkpoints)])
        assert not any(find_damage(path) for path in list_checkpoints(checkpoints)[-number:])

    straight = tmp_path / "straight"
    _train(tiny_llama, LORA, straight, monkeypatch, beside=False)
    _damaged_run(tiny_llama, straight, tmp_path / "run", (4, 5, 7), (5, 7))
    monkeypatch.setattr(checkpointing, "remove_old_checkpoints", look)
    parts, run = make_parts(tiny_llama, LORA), RunFolder(tmp_path / "run")
    start = newest_intact_checkpoint(run.checkpoints)
    assert start == run.checkpoint(4)
    saving = CheckpointCallback(run, CheckpointSettings(2, None, keep))
    with saving:
        train(parts, load_checkpoint(start, parts), [saving])
    assert whole_after[0][-keep:] == ["checkpoint-4", "checkpoint-6"][-keep:]
    assert not {"checkpoint-5", "checkpoint-7"} & set(whole_after[0])
    assert find_damage(run.final_checkpoint) is None


def test_control_a_damaged_one_that_counts_takes_the_place(tiny_llama, tmp_path, monkeypatch):
    straight = tmp_path / "straight"
    _train(tiny_llama, LORA, straight, monkeypatch, beside=False)
    _damaged_run(tiny_llama, straight, tmp_path / "run", (4, 5), (5,))
    parts, run = make_parts(tiny_llama, LORA), RunFolder(tmp_path / "run")
    state = load_checkpoint(run.checkpoint(4), parts)
    state.global_step = 6
    checkpoint.save_checkpoint(run.checkpoint(6), take_snapshot(parts, state))  # as if 5 had been sound
    checkpoint.remove_old_checkpoints(run.checkpoints, 2)
    assert [path.name for path in list_checkpoints(run.checkpoints) if find_damage(path)] == ["checkpoint-5"]
    assert not run.checkpoint(4).exists()
