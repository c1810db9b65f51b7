"""Validation during training: the best step, and when to stop."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from llmtune.distributed import is_first
from llmtune.errors import TrainingFault
from llmtune.logs import say
from llmtune.runs.metrics_log import MetricsLog
from llmtune.tracking.tracker import Tracker
from llmtune.training.callbacks.cadence import is_due
from llmtune.training.collectives import value_of_first
from llmtune.training.faults import read_steps
from llmtune.training.parts import StepResult, TrainParts, TrainState
from llmtune.training.stopping import stopping_instead

_LOSS = "evaluate/validation_loss"

Validate = Callable[[nn.Module], float]
"""The model's mean loss on the validation split, nats per supervised token; called in every process. Raises
`Unfinished`, in every process, where a signal came first."""


@dataclass(frozen=True)
class ValidationSettings:
    """When to validate and when to stop."""

    every_steps: int | None
    """Steps between two validations; None is five in a run."""
    patience: int | None
    """Validations without improvement after which training stops; None never stops."""


class ValidationCallback:
    """Validates every few steps and after the last, keeps the best in the state, and stops a run that gets no better.

    Stands before the checkpoint callback.

    Args:
        validate: puts the model in evaluation mode itself; the loop puts it back.
        settings: when.
        log: the run's metrics file.
        tracker: gets `evaluate/validation_loss`.
    """

    def __init__(self, validate: Validate, settings: ValidationSettings, log: MetricsLog, tracker: Tracker) -> None:
        self._validate = validate
        self._settings = settings
        self._log = log
        self._tracker = tracker

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """Stop at once where a resumed run had already stopped early; make up for a validation that a signal ended."""
        self._stop_if_out_of_patience(state)
        last = state.validation_losses[-1][0] if state.validation_losses else 0
        if state.global_step > last and self._is_due(parts, state) and not state.should_stop:
            self._measure(parts, state, is_logged=any(step == state.global_step for step, _ in self._log.losses(_LOSS)))

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Validate where it is due; where a signal asks for the end, the run that goes on does it instead."""
        if not self._is_due(parts, state):
            return
        read_steps(parts, state)
        if parts.watch.stopped_by is None:
            with stopping_instead(parts, state):
                self._measure(parts, state)

    def _is_due(self, parts: TrainParts, state: TrainState) -> bool:
        return is_due(state.global_step, self._settings.every_steps, parts.settings.schedule.total_steps)

    def _measure(self, parts: TrainParts, state: TrainState, *, is_logged: bool = False) -> None:
        """Validate after this step; `is_logged` says that a run which was killed before it saved has the line."""
        loss = value_of_first(self._validate(parts.model), parts.device)
        if not abs(loss) < float("inf"):
            raise TrainingFault(f"validation loss after step {state.global_step} is {loss}; lower train.learning_rate")
        state.validation_losses.append((state.global_step, loss))
        if state.best_validation_loss is None or loss < state.best_validation_loss:
            state.best_validation_loss, state.best_step = loss, state.global_step
            state.validations_without_improvement = 0
        else:
            state.validations_without_improvement += 1
        if is_first():
            if not is_logged:
                self._log.append(state.global_step, {_LOSS: loss})
            self._tracker.log_metrics({_LOSS: loss}, state.global_step)  # which leaves out what its store has
        self._stop_if_out_of_patience(state)

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Nothing: the last step has validated."""

    def _stop_if_out_of_patience(self, state: TrainState) -> None:
        patience = self._settings.patience
        if patience is not None and state.validations_without_improvement >= patience:
            state.should_stop = True
            say(
                f"stopping after step {state.global_step}: validation loss has not improved on "
                f"{state.best_validation_loss:.4f} (step {state.best_step}) in {patience} validations"
            )
