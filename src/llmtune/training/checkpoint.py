"""Checkpoints: everything a run needs to go on exactly, written so that a kill at any moment leaves a whole one."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llmtune.errors import RunError, TrainingFault
from llmtune.logs import warn
from llmtune.runs.file_digest import sha256_of
from llmtune.training.optimizer_state import OPTIMIZER_FILES, restore_optimizer, save_optimizer
from llmtune.training.parts import TrainParts, TrainState
from llmtune.training.snapshot import Snapshot

FORMAT_VERSION = 1
_INDEX = "checkpoint.json"
_STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(0|[1-9]\d*)")
_WEIGHTS = frozenset({"model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"})
_SPARE_BYTES = 16 * 2**20
_GIB = 2**30


def save_checkpoint(folder: Path, snapshot: Snapshot, sound_step: int | None = None) -> None:
    """Write a snapshot to `folder`, which appears whole or not at all.

    Everything is written to a temporary folder beside it, the index with each file's sha256 last; then one rename.

    Args:
        folder: `checkpoints/checkpoint-<step>`; a damaged one of that name is replaced.
        snapshot: weights, optimizer and state.
        sound_step: the step that the run was last saved at or went on from; None is the snapshot's own. Other
            checkpoints of later steps are removed: the run would have gone on from them if they were whole.

    Raises:
        TrainingFault: writing failed; earlier checkpoints are untouched.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    with as_training_fault(f"{folder.name} could not be saved", folder.parent):
        try:
            clear_leftovers(folder.parent)
            temporary.mkdir()
            snapshot.save_weights(temporary)
            save_optimizer(snapshot.optimizer, temporary)
            content = {"format_version": FORMAT_VERSION, "state": snapshot.state, "scaler": snapshot.scaler}
            _write_json(temporary / _STATE, content)
            _write_index(temporary, snapshot.step)
            _put_in_place(temporary, folder, snapshot.step if sound_step is None else sound_step)
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def as_training_fault(what: str, checkpoints: Path) -> Iterator[None]:
    """Turn an error of the file system inside the block into one sentence that begins with `what`.

    Raises:
        TrainingFault: there was one.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingFault(
            f"{what}: {error}; earlier checkpoints are untouched, and once this is mended the run goes on from them "
            f"with train run={checkpoints.parent}"
        ) from error


def check_free_space(checkpoints: Path, size: int, what_for: str) -> None:
    """Check that checkpoints of `size` bytes of tensors can be written.

    Args:
        checkpoints: the run's folder of checkpoints.
        size: bytes of all tensors that are to be written.
        what_for: what they are, as the beginning of a sentence.

    Raises:
        TrainingFault: the disk lacks the space.
    """
    needed, free = size + _SPARE_BYTES, shutil.disk_usage(checkpoints).free
    if free < needed:
        raise TrainingFault(
            f"{what_for} take {needed / _GIB:.2f} GiB in {checkpoints}, where {free / _GIB:.2f} GiB are free; make "
            f"room or lower train.keep_checkpoints, and go on with train run={checkpoints.parent}"
        )


def load_checkpoint(folder: Path, parts: TrainParts) -> TrainState:
    """Put a checkpoint's weights, optimizer and loss scale back into `parts`.

    Args:
        folder: one that `find_damage` finds nothing wrong with; it isn't looked at again.
        parts: what the run goes on with.

    Returns:
        The state it was saved with.

    Raises:
        RunError: the checkpoint doesn't fit the model or optimizer.
    """
    content = _read_json(folder / _STATE)
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
    """What is wrong with a checkpoint, in words; None if it is what was saved: each file, no other, each digest."""
    try:
        index = _read_json(folder / _INDEX)
        return (
            _find_wrong_index(folder, index)
            or _find_wrong_file(folder, index["files"])
            or _find_wrong_state(folder, index["step"])
        )
    except OSError as error:
        return f"{Path(error.filename or folder).name} can't be read ({error.strerror})"
    except ValueError as error:
        return str(error)


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """The folders `checkpoint-<step>`, oldest first."""
    if not checkpoints.is_dir():
        return []
    return sorted((path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name)), key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """How many steps were done when the checkpoint `checkpoint-<step>` was saved."""
    return int(folder.name.rpartition("-")[2])


def newest_intact_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint that isn't damaged; None if there is none. Warns of each damaged one that is newer."""
    damages: dict[Path, str] = {}
    intact = None
    for folder in reversed(list_checkpoints(checkpoints)):
        damage = find_damage(folder)
        if damage is None:
            intact = folder
            break
        damages[folder] = damage
    instead = "training starts again" if intact is None else f"falling back to {intact.name}"
    for folder, damage in damages.items():
        warn(f"{folder} is damaged: {damage}; {instead}")
    return intact


def settle_best(state: TrainState, checkpoints: Path) -> None:
    """Where the best step's checkpoint is gone, take the best whole one that is left instead, or none; and say so.

    It is gone where a later step was better and the run has fallen back behind that one.
    """
    gone = state.best_step
    if gone is None or (checkpoints / f"checkpoint-{gone}").exists():
        return
    state.best_step = state.best_validation_loss = None
    for step, loss in sorted(state.validation_losses, key=lambda point: point[1]):
        if find_damage(checkpoints / f"checkpoint-{step}") is None:
            state.best_step, state.best_validation_loss = step, loss
            break
    left = "none that was validated" if state.best_step is None else f"checkpoint-{state.best_step}"
    warn(f"checkpoint-{gone}, the best by validation loss, is gone; the best that is left is {left}")


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
            _remove(leaving)
            folder.replace(leaving)
            _remove(leaving)


def _find_wrong_index(folder: Path, index: dict[str, Any]) -> str | None:
    version, name = index.get("format_version"), folder.resolve().name
    if version != FORMAT_VERSION:
        return f"{_INDEX} has format version {version}, this llmtune reads {FORMAT_VERSION}"
    if not isinstance(index.get("files"), dict) or not isinstance(index.get("step"), int):
        return f"{_INDEX} lacks the step or the files"
    if _NAME.fullmatch(name) and index["step"] != int(name.rpartition("-")[2]):
        return f"{_INDEX} is of step {index['step']}"
    return None


def _find_wrong_file(folder: Path, digests: dict[str, str]) -> str | None:
    found = {file.relative_to(folder).as_posix() for file in _visible_files(folder)}
    for name in sorted({_STATE, *OPTIMIZER_FILES, *digests} - found):
        return f"{name} is missing"
    if not _WEIGHTS & found:
        return "its weights are missing"
    for name in sorted(found - set(digests) - {_INDEX}):
        return f"{name} was not saved with it"
    for name, digest in digests.items():
        if sha256_of(folder / name) != digest:
            return f"{name} has changed since it was saved"
    return None


def _find_wrong_state(folder: Path, step: int) -> str | None:
    content = _read_json(folder / _STATE)
    version, state = content.get("format_version"), content.get("state")
    if version != FORMAT_VERSION:
        return f"{_STATE} has format version {version}, this llmtune reads {FORMAT_VERSION}"
    if "scaler" not in content or not isinstance(state, dict):
        return f"{_STATE} lacks the state or the scaler"
    expected = {field.name for field in fields(TrainState)} - {"should_stop"}
    for name in sorted(expected ^ set(state)):
        return f"{_STATE} {'lacks' if name in expected else 'has an unknown'} {name}"
    if state["global_step"] != step:
        return f"{_STATE} is of step {state['global_step']}"
    return None


def _visible_files(folder: Path) -> list[Path]:
    """The files of a checkpoint; hidden ones are the file system's or the desktop's."""
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        OSError: the file can't be read.
        ValueError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} isn't JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_index(folder: Path, step: int) -> None:
    digests = {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(_visible_files(folder))}
    _write_json(folder / _INDEX, {"format_version": FORMAT_VERSION, "step": step, "files": digests})


def _put_in_place(temporary: Path, folder: Path, sound_step: int) -> None:
    """Bring everything to the disk, then rename; then remove what is of later steps than the sound one."""
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    if folder.exists() or folder.is_symlink():
        folder.replace(folder.with_name(f".{folder.name}.old"))
    temporary.replace(folder)
    _fsync(folder.parent)
    for other in list_checkpoints(folder.parent):
        if other != folder and checkpoint_step(other) > sound_step:
            _remove(other)
    clear_leftovers(folder.parent)


def clear_leftovers(checkpoints: Path) -> None:
    """Make the folder of checkpoints where it is missing, and remove what a killed save or removal left in it."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    for path in checkpoints.glob(".checkpoint-*"):
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder with what is in it, a file, or a link but not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
