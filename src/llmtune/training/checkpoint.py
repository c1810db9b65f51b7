"""Checkpoints: everything a run needs to go on exactly, written so that a kill at any moment leaves a whole one."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llmtune.errors import RunError, TrainingFault
from llmtune.logs import warn
from llmtune.training.optimizer_state import restore_optimizer, save_optimizer
from llmtune.training.parts import TrainParts, TrainState

FORMAT_VERSION = 1
_INDEX = "checkpoint.json"
_STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_SPARE_BYTES = 16 * 2**20
_GIB = 2**30


def save_checkpoint(folder: Path, parts: TrainParts, state: TrainState) -> None:
    """Write weights, optimizer and state to `folder`, which appears whole or not at all.

    Everything is written to a temporary folder beside it, the index with each file's sha256 last; then one rename.

    Args:
        folder: `checkpoints/checkpoint-<step>`; a damaged one of that name is replaced.
        parts: model, method, optimizer and scaler.
        state: saved but for `should_stop`.

    Raises:
        TrainingFault: the disk lacks the space, or writing failed; earlier checkpoints are untouched.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(folder.parent)
    _check_free_space(folder, parts)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        temporary.mkdir()
        parts.method.save(parts.model, temporary)
        save_optimizer(parts.model, parts.optimizer, temporary)
        _write_json(temporary / _STATE, _state_content(parts, state))
        _write_index(temporary, state.global_step)
        _put_in_place(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingFault(f"{folder.name} could not be saved: {error}; earlier checkpoints are untouched") from error


def load_checkpoint(folder: Path, parts: TrainParts) -> TrainState:
    """Put a checkpoint's weights, optimizer and loss scale back into `parts`.

    Returns:
        The state it was saved with.

    Raises:
        RunError: the checkpoint is damaged, or doesn't fit the model or optimizer.
    """
    damage = find_damage(folder)
    if damage is not None:
        raise RunError(f"{folder} is damaged: {damage}; name an earlier checkpoint")
    content = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    parts.method.restore(parts.model, folder)
    restore_optimizer(parts.model, parts.optimizer, folder)
    if (content["scaler"] is None) != (parts.scaler is None):
        raise RunError(f"{folder} was saved with another train.precision; go on with the one the run started with")
    if parts.scaler is not None:
        parts.scaler.load_state_dict(content["scaler"])
    state = TrainState(**content["state"])
    state.validation_losses = [(step, loss) for step, loss in state.validation_losses]
    return state


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if every file is there with its digest."""
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        version, digests = index["format_version"], dict(index["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{_INDEX} can't be read ({type(error).__name__})"
    if version > FORMAT_VERSION:
        return f"it has format version {version}, this llmtune reads up to {FORMAT_VERSION}"
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if _sha256(file) != digest:
            return f"{name} has changed since it was saved"
    return None


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """The folders `checkpoint-<step>`, oldest first."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name) and not path.is_symlink()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """How many steps were done when the checkpoint `checkpoint-<step>` was saved."""
    return int(folder.name.rpartition("-")[2])


def newest_intact_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint that isn't damaged, each damaged one named in a warning; None if there is none."""
    for folder in reversed(list_checkpoints(checkpoints)):
        damage = find_damage(folder)
        if damage is None:
            return folder
        warn(f"{folder} is damaged: {damage}; falling back to the checkpoint before it")
    return None


def link_checkpoint(link: Path, folder: Path) -> None:
    """Make `link` a relative link to its neighbour `folder`; a reader finds the old target or the new one."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name, target_is_directory=True)
    temporary.replace(link)
    _fsync(link.parent)


def remove_old_checkpoints(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and those that a link points to."""
    linked = {path.readlink().name for path in checkpoints.iterdir() if path.is_symlink()}
    for folder in list_checkpoints(checkpoints)[:-keep]:
        if folder.name not in linked:
            leaving = folder.with_name(f".{folder.name}.old")
            folder.replace(leaving)
            shutil.rmtree(leaving)


def _state_content(parts: TrainParts, state: TrainState) -> dict[str, Any]:
    kept = {key: value for key, value in asdict(state).items() if key != "should_stop"}
    scaler = None if parts.scaler is None else parts.scaler.state_dict()
    return {"format_version": FORMAT_VERSION, "state": kept, "scaler": scaler}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_index(folder: Path, step: int) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    _write_json(folder / _INDEX, {"format_version": FORMAT_VERSION, "step": step, "files": digests})


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Bring everything to the disk, then rename."""
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    if folder.exists():
        folder.replace(folder.with_name(f".{folder.name}.old"))
    temporary.replace(folder)
    _fsync(folder.parent)
    _clear_leftovers(folder.parent)


def _clear_leftovers(checkpoints: Path) -> None:
    """Remove what a killed save or removal left."""
    for path in checkpoints.glob(".checkpoint-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _check_free_space(folder: Path, parts: TrainParts) -> None:
    state = [value for entries in parts.optimizer.state.values() for value in entries.values()]
    tensors = [*parts.trainable, *(value for value in state if isinstance(value, torch.Tensor))]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors) + _SPARE_BYTES
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise TrainingFault(
            f"{folder.name} needs {needed / _GIB:.2f} GiB in {folder.parent}, where {free / _GIB:.2f} GiB are free; "
            "make room and go on with train run=RUN from the checkpoint before"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
