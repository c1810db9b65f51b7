"""A disk that is full before training, before a save or within one: one sentence, FAILED, and the run goes on later."""

import os

import pytest

from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile
from llmtune.training.callbacks import checkpointing
from llmtune.training.checkpoint import find_damage, list_checkpoints
from small_disk import mounted

from .conftest import ASSETS, SHORT

UNTRACKED = "tracking.backend=none"
OFTEN = ("train.checkpoint_every_steps=1", "train.keep_checkpoints=3")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 MiB for the runs; skips where none may be mounted."""
    with mounted(tmp_path / "disk", "32m") as disk:
        yield disk


def _fill(disk, leave):
    """Fill the disk but for `leave` bytes."""
    state = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        file.write(b"\0" * max(0, state.f_bavail * state.f_frsize - leave))


def _words(disk):
    return [
        *SHORT,
        f"model={ASSETS / 'tiny_llama'}",
        f"data.path={ASSETS / 'examples.jsonl'}",
        f"runs_dir={disk}",
        UNTRACKED,
    ]


def _told(capsys, folder, sentence):
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llmtune: ")]
    assert len(errors) == 1 and sentence in errors[0] and f"train run={folder}" in errors[0]
    record = RunStatusFile(RunFolder(folder).status_file).read()
    assert record is not None and record.status == "FAILED" and record.error is not None and sentence in record.error
    print(errors[0])


def _run_in(disk):
    (folder,) = [path.parent for path in disk.glob("*/config.yaml")]
    return folder


def _check_end(workplace, folder, straight):
    ends = []
    for run in (RunFolder(folder), straight):
        weights = (run.final_checkpoint / "adapter_model.safetensors").read_bytes()
        ends.append((weights, MetricsLog(run.metrics_file).losses("train/loss")))
    assert ends[0] == ends[1]
    assert not any(find_damage(path) for path in list_checkpoints(RunFolder(folder).checkpoints))


def test_a_disk_that_is_full_before_the_first_step(workplace, small_disk, capsys):
    _fill(small_disk, leave=8 * 2**20)
    assert workplace.type("train", *_words(small_disk), *OFTEN) == 1
    folder = _run_in(small_disk)
    _told(capsys, folder, "5 checkpoints (train.keep_checkpoints=3, the best, the one being written) take")
    assert MetricsLog(RunFolder(folder).metrics_file).read() == []
    (small_disk / "filler").unlink()
    assert workplace.type("train", f"run={folder}") == 0


@pytest.mark.parametrize("place", ["before a save", "within a save"])
def test_a_disk_that_fills_while_training(workplace, small_disk, capsys, monkeypatch, place):
    assert workplace.train("train", UNTRACKED) == 0
    straight = workplace.newest
    check = checkpointing.check_free_space

    def fill_at_5(checkpoints, size, what_for):
        if what_for.endswith("checkpoint-5"):
            _fill(small_disk, leave=64 * 2**10)
            if place == "within a save":
                return
        check(checkpoints, size, what_for)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "check_free_space", fill_at_5)
        capsys.readouterr()
        assert workplace.type("train", *_words(small_disk), *OFTEN) == 1
    folder = _run_in(small_disk)
    _told(capsys, folder, "No space left on device" if place == "within a save" else "are free; make room")
    checkpoints = list_checkpoints(RunFolder(folder).checkpoints)
    assert checkpoints[-1].name == "checkpoint-4" and not any(find_damage(path) for path in checkpoints)
    assert not list(RunFolder(folder).checkpoints.glob(".*"))
    (small_disk / "filler").unlink()
    assert workplace.type("train", f"run={folder}") == 0
    _check_end(workplace, folder, straight)


def test_a_disk_without_a_byte_left(workplace, small_disk, capfd, monkeypatch):
    assert workplace.train("train", UNTRACKED) == 0
    straight, append = workplace.newest, MetricsLog.append

    def append_to_full(log, step, metrics):
        append(log, step, metrics)
        if step == 3:
            _fill(small_disk, leave=0)
            for _ in range(5000):  # the file's last block may have room left
                append(log, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", append_to_full)
        assert workplace.train("train", UNTRACKED, f"runs_dir={small_disk}", "train.log_every_steps=1") == 1
    folder, shown = _run_in(small_disk), capfd.readouterr().err
    assert [line for line in shown.splitlines() if line] == [
        "llmtune: no space left: make room, or choose another folder"
    ]
    record = RunStatusFile(RunFolder(folder).status_file).read()
    assert record is not None and record.status == "FAILED" and "No space left" in record.error
    (small_disk / "filler").unlink()
    assert workplace.type("train", f"run={folder}") == 0
    _check_end(workplace, folder, straight)
