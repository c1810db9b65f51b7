"""Saving checkpoints during training."""

from dataclasses import dataclass

from llmtune.distributed import is_first
from llmtune.runs.layout import RunFolder
from llmtune.training.callbacks.cadence import is_due
from llmtune.training.checkpoint import link_checkpoint, remove_old_checkpoints, save_checkpoint
from llmtune.training.collectives import wait_for_all
from llmtune.training.faults import read_steps
from llmtune.training.parts import StepResult, TrainParts, TrainState


@dataclass(frozen=True)
class CheckpointSettings:
    """When to save and how much to keep."""

    every_steps: int | None
    """Steps between two checkpoints; None saves at each validation."""
    validate_every_steps: int | None
    """Steps between two validations; None is five in a run."""
    keep: int
    """Newest checkpoints to keep, beside the best and the final one."""


class CheckpointCallback:
    """Saves every few steps, at each new best validation and at the end; keeps the newest, the best and the final.

    Stands after the validation callback. The first process writes, the others wait.

    Args:
        run: where checkpoints go.
        settings: when, and how many stay.
    """

    def __init__(self, run: RunFolder, settings: CheckpointSettings) -> None:
        self._run = run
        self._settings = settings
        self._saved_step: int | None = None

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """A resumed run stands where its checkpoint does; set the best link, should a kill have come before it."""
        if state.global_step and self._run.checkpoint(state.global_step).exists():
            self._saved_step = state.global_step
        if is_first() and state.best_step is not None and self._run.checkpoint(state.best_step).exists():
            link_checkpoint(self._run.best_checkpoint, self._run.checkpoint(state.best_step))
        wait_for_all()

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Save where it is due."""
        every_steps = self._settings.every_steps or self._settings.validate_every_steps
        due = is_due(state.global_step, every_steps, parts.settings.schedule.total_steps)
        if due or state.should_stop or state.best_step == state.global_step:
            self._save(parts, state)

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Save the last step if it isn't yet, and link it as the final one."""
        if self._saved_step != state.global_step:
            self._save(parts, state)
        if is_first():
            link_checkpoint(self._run.final_checkpoint, self._run.checkpoint(state.global_step))
            remove_old_checkpoints(self._run.checkpoints, self._settings.keep)
        wait_for_all()

    def _save(self, parts: TrainParts, state: TrainState) -> None:
        read_steps(parts, state)
        if is_first():
            folder = self._run.checkpoint(state.global_step)
            save_checkpoint(folder, parts, state)
            if state.best_step == state.global_step:
                link_checkpoint(self._run.best_checkpoint, folder)
            remove_old_checkpoints(self._run.checkpoints, self._settings.keep)
        self._saved_step = state.global_step
        wait_for_all()
