"""Damage to the newest checkpoint is found and said, and the run goes on from the one before it; full disks too."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_training import FULL, LORA_DROPOUT, Setup, make_parts, resume, train_to_the_end, weights_digest

from llmtune.errors import TrainingFault
from llmtune.training import checkpoint
from llmtune.training.callbacks import checkpointing
from llmtune.training.checkpoint import find_damage, newest_intact_checkpoint, save_checkpoint
from llmtune.training.parts import TrainState
from llmtune.training.snapshot import take_snapshot
from small_disk import mounted

SETUPS = {"lora": Setup(LORA_DROPOUT), "full": Setup(FULL)}
FILES = {
    "lora": ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "optimizer.json",
             "trainer_state.json", "checkpoint.json"],
    "full": ["model.safetensors", "config.json"],
}  # fmt: skip
BEFORE, NEWEST = 6, 7
NOBODY = 65534


def _flip(file: Path, place: Callable[[int], int]) -> None:
    content = bytearray(file.read_bytes())
    content[place(len(content))] ^= 4
    file.write_bytes(content)


def _replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _replace_by_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


TO_A_FILE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-2]),
    "a bit flipped early": lambda file: _flip(file, lambda size: 9),
    "a bit flipped late": lambda file: _flip(file, lambda size: size - 5),
    "of the checkpoint before": lambda file: shutil.copyfile(
        file.parent.with_name(f"checkpoint-{BEFORE}") / file.name, file
    ),
    "a folder instead": _replace_by_folder,
    "a link to nowhere": _replace_by_link,
}
SAME_IN_BOTH = {"adapter_config.json", "config.json", "optimizer.json"}
"""Files that no step changes, so that the checkpoint before has the same."""


def _edit_index(folder: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((folder / "checkpoint.json").read_text())
    change(index)
    (folder / "checkpoint.json").write_text(json.dumps(index))


def _edit_state(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the state and give the index its new digest, so that only what it says can tell."""
    state = json.loads((folder / "trainer_state.json").read_text())
    change(state)
    (folder / "trainer_state.json").write_text(json.dumps(state))
    digest = checkpoint.sha256_of(folder / "trainer_state.json")
    _edit_index(folder, lambda index: index["files"].update({"trainer_state.json": digest}))


def _forget(folder: Path, name: str) -> None:
    """Leave a file out, of the index as well."""
    (folder / name).unlink()
    _edit_index(folder, lambda index: index["files"].pop(name))


def _replace_whole(folder: Path, put: Callable[[Path], object]) -> None:
    shutil.rmtree(folder)
    put(folder)


TO_THE_WHOLE: dict[str, Callable[[Path], object]] = {
    "index: broken JSON": lambda folder: (folder / "checkpoint.json").write_text('{"files": {'),
    "index: deep JSON": lambda folder: (folder / "checkpoint.json").write_text("[" * 100_000),
    "index: a list": lambda folder: (folder / "checkpoint.json").write_text("[]"),
    "index: another version": lambda folder: _edit_index(folder, lambda index: index.update(format_version=99)),
    "index: version in words": lambda folder: _edit_index(folder, lambda index: index.update(format_version="1")),
    "index: another digest": lambda folder: _edit_index(
        folder, lambda index: index["files"].update({"optimizer.safetensors": "0" * 64})
    ),
    "index: no files": lambda folder: _edit_index(folder, lambda index: index.pop("files")),
    "index: lists nothing": lambda folder: _edit_index(folder, lambda index: index.update(files={})),
    "index: lists one more": lambda folder: _edit_index(
        folder, lambda index: index["files"].update({"../checkpoint-6/checkpoint.json": "0" * 64})
    ),
    "index: of another step": lambda folder: _edit_index(folder, lambda index: index.update(step=BEFORE)),
    "index: no step": lambda folder: _edit_index(folder, lambda index: index.pop("step")),
    "state: another version": lambda folder: _edit_state(folder, lambda state: state.update(format_version=0)),
    "state: of another step": lambda folder: _edit_state(folder, lambda state: state["state"].update(global_step=1)),
    "state: a part is missing": lambda folder: _edit_state(folder, lambda state: state["state"].pop("best_step")),
    "state: a part too many": lambda folder: _edit_state(folder, lambda state: state["state"].update(colour="red")),
    "state: no scaler": lambda folder: _edit_state(folder, lambda state: state.pop("scaler")),
    "state: gone without a trace": lambda folder: _forget(folder, "trainer_state.json"),
    "optimizer: gone without a trace": lambda folder: _forget(folder, "optimizer.safetensors"),
    "weights: gone without a trace": lambda folder: _forget(folder, "adapter_model.safetensors"),
    "a foreign file": lambda folder: (folder / "config.json").write_text("{}"),
    "the folder before under its name": lambda folder: _replace_whole(
        folder, lambda empty: shutil.copytree(empty.with_name(f"checkpoint-{BEFORE}"), empty)
    ),
    "an empty folder": lambda folder: _replace_whole(folder, Path.mkdir),
    "a file for the folder": lambda folder: _replace_whole(folder, lambda path: path.write_text("x")),
    "a link to nowhere for the folder": lambda folder: _replace_whole(folder, lambda path: path.symlink_to("nowhere")),
    "a link to itself for the folder": lambda folder: _replace_whole(folder, lambda path: path.symlink_to(path.name)),
}
CASES = [
    *[
        pytest.param(method, (lambda folder, name=name, damage=damage: damage(folder / name)), id=f"{name}: {kind}")
        for method, names in FILES.items()
        for name in names
        for kind, damage in TO_A_FILE.items()
        if not (name in SAME_IN_BOTH and kind == "of the checkpoint before")
    ],
    *[pytest.param("lora", damage, id=kind) for kind, damage in TO_THE_WHOLE.items()],
]


@pytest.fixture(scope="module")
def straight(tiny_llama, tmp_path_factory):
    """A run by each method, whole: its folder and what it came to."""
    runs = {}
    for method, setup in SETUPS.items():
        folder = tmp_path_factory.mktemp(method)
        runs[method] = folder, train_to_the_end(make_parts(tiny_llama, setup), TrainState(), folder)
    return runs


@pytest.fixture
def run_folder(straight, tmp_path):
    """A function that gives a run which stands at its newest checkpoint and has the one before it."""

    def copy(method: str) -> Path:
        for step in (BEFORE, NEWEST):
            name = f"checkpoint-{step}"
            shutil.copytree(straight[method][0] / "checkpoints" / name, tmp_path / "checkpoints" / name)
        return tmp_path

    return copy


@pytest.fixture
def warnings(monkeypatch):
    """What is said."""
    said = []
    monkeypatch.setattr(checkpoint, "warn", said.append)
    return said


def _check_fallback(checkpoints: Path, warnings: list[str]) -> None:
    assert newest_intact_checkpoint(checkpoints) == checkpoints / f"checkpoint-{BEFORE}"
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{checkpoints / f'checkpoint-{NEWEST}'} is damaged: ")
    assert warnings[0].endswith(f"; falling back to checkpoint-{BEFORE}")


@pytest.mark.fast
@pytest.mark.parametrize(("method", "damage"), CASES)
def test_damage_is_found_and_the_checkpoint_before_is_named(run_folder, warnings, method, damage):
    checkpoints = run_folder(method) / "checkpoints"
    damage(checkpoints / f"checkpoint-{NEWEST}")
    _check_fallback(checkpoints, warnings)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "damage"), CASES)
def test_a_damaged_run_ends_with_the_same_bits(tiny_llama, straight, run_folder, warnings, method, damage):
    folder = run_folder(method)
    damage(folder / "checkpoints" / f"checkpoint-{NEWEST}")
    start = newest_intact_checkpoint(folder / "checkpoints")
    assert start is not None
    assert resume(tiny_llama, SETUPS[method], start, folder) == straight[method][1].after(BEFORE)
    assert find_damage(folder / "checkpoints" / f"checkpoint-{NEWEST}") is None, "replaced by a whole one"
    print(warnings[0])


@pytest.mark.fast
def test_how_many_kinds_of_damage_there_are():
    print(f"{len(CASES)} kinds of damage, all found")
    assert len(CASES) >= 40


@contextmanager
def _without_privileges():
    """Root may read everything; nobody may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.fast
@pytest.mark.parametrize("name", [*FILES["lora"], ""], ids=[*FILES["lora"], "the folder"])
def test_what_may_not_be_read_is_damage(run_folder, warnings, name):
    folder = run_folder("lora")
    for parent in [folder, *folder.parents]:
        if parent.stat().st_uid == os.geteuid() and parent.name.startswith(("pytest", "test", "popen")):
            parent.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    locked = folder / "checkpoints" / f"checkpoint-{NEWEST}" / name
    locked.chmod(0)
    with _without_privileges():
        _check_fallback(folder / "checkpoints", warnings)
    locked.chmod(0o700)
    assert "Permission denied" in warnings[0]


@pytest.mark.fast
def test_what_a_killed_save_left_disturbs_nothing(tiny_llama, straight, run_folder, warnings):
    folder = run_folder("lora")
    checkpoints = folder / "checkpoints"
    for name in (".checkpoint-8.tmp", ".checkpoint-9.old"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "optimizer.safetensors").write_bytes(b"half")
    (checkpoints / ".checkpoint-10.tmp").write_text("a file")
    (checkpoints / ".checkpoint-best.tmp").symlink_to("nowhere")
    start = newest_intact_checkpoint(checkpoints)
    assert start is not None and start.name == f"checkpoint-{NEWEST}"
    assert resume(tiny_llama, SETUPS["lora"], start, folder) == straight["lora"][1].after(NEWEST)
    assert not [path.name for path in checkpoints.iterdir() if path.name.startswith(".")]
    assert warnings == []


@pytest.mark.fast
def test_with_no_whole_checkpoint_the_run_begins_again_aloud(run_folder, warnings):
    checkpoints = run_folder("lora") / "checkpoints"
    for step in (BEFORE, NEWEST):
        (checkpoints / f"checkpoint-{step}" / "trainer_state.json").unlink()
    assert newest_intact_checkpoint(checkpoints) is None
    assert [line.rpartition("; ")[2] for line in warnings] == ["training starts again"] * 2


@contextmanager
def _no_file_above(size: int):
    """The system refuses to write files of more than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fast
@pytest.mark.parametrize("method", SETUPS)
def test_a_write_that_fails_is_told_and_training_goes_on_from_before(tiny_llama, straight, run_folder, method):
    folder = run_folder(method)
    newest = folder / "checkpoints" / f"checkpoint-{NEWEST}"
    parts = make_parts(tiny_llama, SETUPS[method])
    sizes = sorted({file.stat().st_size for file in newest.iterdir()})
    state = checkpoint.load_checkpoint(newest, parts)
    digest = weights_digest(parts.model)
    state.global_step += 1
    for size in sizes:
        with (
            _no_file_above(size - 1),
            pytest.raises(TrainingFault, match=r"checkpoint-8 could not be saved: .*[Ff]ile"),
        ):
            save_checkpoint(newest.with_name("checkpoint-8"), take_snapshot(parts, state))
        assert sorted(path.name for path in newest.parent.iterdir()) == [f"checkpoint-{BEFORE}", f"checkpoint-{NEWEST}"]
    assert weights_digest(parts.model) == digest
    print(f"{len(sizes)} failing saves told")
    assert resume(tiny_llama, SETUPS[method], newest, folder) == straight[method][1].after(NEWEST)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB; skips where none may be mounted."""
    with mounted(tmp_path / "disk", "512k") as disk:
        yield disk


@pytest.mark.fast
def test_a_full_disk_is_told_and_training_goes_on_from_before(tiny_llama, straight, small_disk, monkeypatch):
    setup = SETUPS["lora"]
    with pytest.raises(TrainingFault, match=r"^10 checkpoints \(.*\) take .* GiB in .* are free; make room"):
        train_to_the_end(make_parts(tiny_llama, setup), TrainState(), small_disk)
    assert list((small_disk / "checkpoints").iterdir()) == []
    monkeypatch.setattr(checkpointing, "check_free_space", lambda *_: None)
    with pytest.raises(TrainingFault, match=r"could not be saved: .*No space left on device"):
        train_to_the_end(make_parts(tiny_llama, setup), TrainState(), small_disk)
    newest = newest_intact_checkpoint(small_disk / "checkpoints")
    assert newest is not None and not list(newest.parent.glob(".*"))
    step = checkpoint.checkpoint_step(newest)
    print(f"512 KiB were full after {step} checkpoints")
    resumed = resume(tiny_llama, setup, newest, small_disk.parent / "elsewhere")
    assert resumed == straight["lora"][1].after(step)
