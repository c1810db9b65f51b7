"""Each step's metrics, to the run folder and the tracker."""

from collections import deque

from llmtune.distributed import is_first, num_processes
from llmtune.runs.metrics_log import MetricsLog
from llmtune.tracking.tracker import Tracker
from llmtune.training.faults import read_steps
from llmtune.training.parts import StepResult, TrainParts, TrainState
from llmtune.training.throughput import NUM_WARMUP_STEPS, Throughput


class MetricsCallback:
    """Writes every step to `metrics.jsonl` and every few steps to the tracker.

    The host waits for the device where an entry goes to the tracker; the steps between are written with it, or earlier
    where a validation or a save has read them.

    Args:
        log: the run's metrics file.
        tracker: gets the same entries.
        log_every_steps: steps between two entries of the tracker; the training's last step is always sent.
    """

    def __init__(self, log: MetricsLog, tracker: Tracker, log_every_steps: int) -> None:
        self._log = log
        self._tracker = tracker
        self._log_every_steps = log_every_steps
        self._waiting: deque[tuple[StepResult, int]] = deque()  # and the run's tokens by then
        self._num_steps = 0
        self._last: tuple[int, dict[str, float]] | None = None  # written, and not sent
        self.throughput = Throughput(num_processes())

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """Drop entries of steps that a resumed run makes again."""
        if is_first():
            self._log.cut_after(state.global_step)
        parts.watch.listeners.append(lambda _: self._write(parts))

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Record the step, now or once its figures are read."""
        self._waiting.append((result, state.num_tokens))
        self._num_steps += 1
        # the first steps are read apart, so that their time isn't shared out among later ones
        if self._is_due(parts, state.global_step) or self._num_steps == NUM_WARMUP_STEPS:
            read_steps(parts, state)
        self._write(parts)

    def _is_due(self, parts: TrainParts, step: int) -> bool:
        return step == parts.settings.schedule.total_steps or step % self._log_every_steps == 0

    def _write(self, parts: TrainParts) -> None:
        """Write the steps that have been read since the last time."""
        while self._waiting and (figures := self._waiting[0][0].figures) is not None:
            result, num_tokens = self._waiting.popleft()
            speed = self.throughput.add(result.num_tokens, figures.seconds)
            if not is_first():
                continue
            metrics = {
                "train/loss": figures.loss,
                "train/learning_rate": result.learning_rate,
                "train/grad_norm": figures.grad_norm,
                "train/epoch": parts.plan.epochs_done(result.number),
                "train/num_tokens": float(num_tokens),
            }
            if speed is not None:
                metrics["train/tokens_per_second_per_device"] = speed
            if figures.loss_scale is not None:
                metrics["train/loss_scale"] = figures.loss_scale
                metrics["train/num_overflows"] = float(figures.num_overflows)
            if figures.skipped:
                del metrics["train/grad_norm"]
            self._log.append(result.number, metrics)
            self._last = (result.number, metrics)
            if self._is_due(parts, result.number):
                self._send_last()

    def _send_last(self) -> None:
        if self._last is not None:
            number, metrics = self._last
            self._tracker.log_metrics(metrics, number)
            self._last = None

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Send the last step, where training stopped early."""
        self._send_last()
