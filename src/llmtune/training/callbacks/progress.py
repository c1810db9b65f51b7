"""The progress bar of training."""

from collections.abc import Sequence

from llmtune.distributed import num_processes
from llmtune.logs import ProgressLine
from llmtune.training.faults import read_steps
from llmtune.training.parts import StepResult, TrainParts, TrainState
from llmtune.training.throughput import Throughput


class ProgressCallback:
    """Advances a progress line by a step, with its loss and speed beside it; time left is the line's own.

    Args:
        line: from `logs.progress`, whose total is the run's steps.
    """

    def __init__(self, line: ProgressLine) -> None:
        self._line = line
        self._throughput = Throughput(num_processes())
        self._note = ""

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """Count the steps that were done before a resume."""
        if state.global_step:
            self._line.advance(state.global_step, note="resumed")

        parts.watch.listeners.append(self._note_last)

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Count the step; beside it stands the last one whose figures are read: on a CPU, which costs nothing, this."""
        if parts.device.type == "cpu" or state.global_step == parts.settings.schedule.total_steps:
            read_steps(parts, state)
        self._line.advance(note=self._note)

    def _note_last(self, results: Sequence[StepResult]) -> None:
        for result in results:
            speed = self._throughput.add(result.num_tokens, result.seconds)
            shown = "" if speed is None else f" {speed:,.0f} tokens/s"
            self._note = f"loss {result.loss:.4f}{shown}"

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Nothing: whoever opened the line closes it."""
