"""Saving checkpoints during training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from llmtune import signals
from llmtune.distributed import is_first
from llmtune.errors import TrainingFault
from llmtune.logs import say, warn
from llmtune.runs.layout import RunFolder
from llmtune.training.background import Background
from llmtune.training.callbacks.cadence import is_due
from llmtune.training.checkpoint import (
    as_training_fault,
    check_free_space,
    clear_leftovers,
    link_checkpoint,
    list_checkpoints,
    remove_old_checkpoints,
    save_checkpoint,
)
from llmtune.training.collectives import several_processes, value_of_first, wait_for_all
from llmtune.training.faults import check_weights, read_steps
from llmtune.training.parts import StepResult, TrainParts, TrainState
from llmtune.training.snapshot import Snapshot, copy_fits, num_bytes, take_snapshot

_BESIDE_THE_NEWEST = 2
"""Checkpoints on the disk besides the newest that are kept: the best, and the one that is being written."""


@dataclass(frozen=True)
class CheckpointSettings:
    """When to save and how much to keep."""

    every_steps: int | None
    """Steps between two checkpoints; None saves at each validation."""
    validate_every_steps: int | None
    """Steps between two validations; None is five in a run."""
    keep: int
    """Newest checkpoints to keep, beside the best and the final one."""
    optimizer_bytes: float = 8.0
    """Bytes of optimizer state a trainable weight, to know the size of a checkpoint before the first step."""


class CheckpointCallback:
    """Saves every few steps, at each new best validation and at the end; keeps the newest, the best and the final.

    A checkpoint is copied at its step and written beside the steps that follow, by one thread, one after the other;
    where memory for the copy is short, training waits while it is written. Stands after the validation callback. The
    first process saves, the others go on with it.

    As a context manager around the training it waits, however that ends, for the checkpoint that is being written; only
    a second signal leaves it where it is, as a kill would.

    Args:
        run: where checkpoints go.
        settings: when, and how many stay.
    """

    def __init__(self, run: RunFolder, settings: CheckpointSettings) -> None:
        self._run = run
        self._settings = settings
        self._background = Background()
        self._saved_step: int | None = None
        self._sound_step = 0
        self._has_said_why = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the checkpoint under way; where it fails, raise that, or say it where another error came first."""
        if signals.asked_twice():
            self._background.leave()
            return
        try:
            self._background.wait()
        except TrainingFault as fault:
            if error is None:
                raise
            warn(str(fault))

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """Look at the disk, and let the best link of a resumed run say what its state says."""
        self._sound_step = state.global_step
        if state.global_step and self._run.checkpoint(state.global_step).exists():
            self._saved_step = state.global_step
        self._first_does(partial(self._look_at_disk, parts, state), parts)

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Save where it is due."""
        if not several_processes():  # of several the first can't end alone: they ask together at the next save
            self._background.raise_failure()
        every_steps = self._settings.every_steps or self._settings.validate_every_steps
        due = is_due(state.global_step, every_steps, parts.settings.schedule.total_steps)
        if due or state.should_stop or state.best_step == state.global_step:
            self._save(parts, state)
        if parts.watch.stopped_by is not None:  # wait here, where a second signal is told from an echo of the first
            self._background.let_finish()

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Save the last step if it isn't yet, wait until it is written, and link it as the final one."""
        if self._saved_step != state.global_step:
            self._save(parts, state)
        self._first_does(partial(self._link_final, state.global_step), parts)
        wait_for_all()

    def _save(self, parts: TrainParts, state: TrainState) -> None:
        read_steps(parts, state)
        check_weights(parts, state)
        self._first_does(partial(self._begin_save, parts, state), parts)
        self._saved_step = state.global_step

    def _first_does(self, work: Callable[[], None], parts: TrainParts) -> None:
        """Let the first process do it, and raise its fault in every process."""
        fault = None
        if is_first():
            try:
                work()
            except TrainingFault as error:
                fault = error
        if value_of_first(float(fault is not None), parts.device):
            raise fault or TrainingFault("the first process could not save a checkpoint")

    def _look_at_disk(self, parts: TrainParts, state: TrainState) -> None:
        checkpoints, best = self._run.checkpoints, state.best_step
        with as_training_fault("checkpoints can't be saved", checkpoints):
            clear_leftovers(checkpoints)
            if best is not None and self._run.checkpoint(best).exists():
                link_checkpoint(self._run.best_checkpoint, self._run.checkpoint(best))
            else:
                self._run.best_checkpoint.unlink(missing_ok=True)
            left = parts.settings.schedule.total_steps - state.global_step
            most = self._settings.keep + _BESIDE_THE_NEWEST - len(list_checkpoints(checkpoints))
            count = min(left, max(1, most))
            if count > 0:
                size = num_bytes(parts, self._settings.optimizer_bytes)
                kept = f"train.keep_checkpoints={self._settings.keep}, the best, the one being written"
                check_free_space(checkpoints, count * size, f"{count} checkpoints ({kept})")

    def _begin_save(self, parts: TrainParts, state: TrainState) -> None:
        self._background.wait()
        folder, size = self._run.checkpoint(state.global_step), num_bytes(parts)
        with as_training_fault(f"{folder.name} could not be saved", folder.parent):
            check_free_space(folder.parent, size, f"the tensors of {folder.name}")
        copied = copy_fits(size)
        if not (copied or self._has_said_why):
            say(f"memory is short of {2 * size / 2**30:.1f} GiB, so training waits while a checkpoint is written")
            self._has_said_why = True
        snapshot = take_snapshot(parts, state, copied=copied)
        work = partial(self._write, snapshot, self._sound_step, is_best=state.best_step == state.global_step)
        self._sound_step = state.global_step
        if copied:
            self._background.start(work)
        else:
            work()

    def _write(self, snapshot: Snapshot, sound_step: int, *, is_best: bool) -> None:
        folder = self._run.checkpoint(snapshot.step)
        save_checkpoint(folder, snapshot, sound_step)
        with as_training_fault(f"old checkpoints could not be removed after {folder.name}", folder.parent):
            if is_best:
                link_checkpoint(self._run.best_checkpoint, folder)
            remove_old_checkpoints(folder.parent, self._settings.keep)

    def _link_final(self, step: int) -> None:
        self._background.wait()
        folder = self._run.checkpoint(step)
        with as_training_fault(f"{folder.name} could not be linked as the final one", folder.parent):
            link_checkpoint(self._run.final_checkpoint, folder)
            remove_old_checkpoints(folder.parent, self._settings.keep)
