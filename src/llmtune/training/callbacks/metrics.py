"""Each step's metrics, to the run folder and the tracker."""

from llmtune.distributed import is_first, num_processes
from llmtune.runs.metrics_log import MetricsLog
from llmtune.tracking.tracker import Tracker
from llmtune.training.parts import StepResult, TrainParts, TrainState
from llmtune.training.throughput import Throughput


class MetricsCallback:
    """Writes every step to `metrics.jsonl` and every few steps to the tracker.

    Args:
        log: the run's metrics file.
        tracker: gets the same entries.
        log_every_steps: steps between two entries of the tracker; the last step is always sent.
    """

    def __init__(self, log: MetricsLog, tracker: Tracker, log_every_steps: int) -> None:
        self._log = log
        self._tracker = tracker
        self._log_every_steps = log_every_steps
        self.throughput = Throughput(num_processes())

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """Drop entries of steps that a resumed run makes again."""
        if is_first():
            self._log.cut_after(state.global_step)

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Record the step."""
        speed = self.throughput.add(result.num_tokens, result.seconds)
        if not is_first():
            return
        metrics = {
            "train/loss": result.loss,
            "train/learning_rate": result.learning_rate,
            "train/grad_norm": result.grad_norm,
            "train/epoch": state.global_step / parts.plan.steps_per_epoch,
            "train/num_tokens": float(state.num_tokens),
        }
        if speed is not None:
            metrics["train/tokens_per_second_per_device"] = speed
        if parts.scaler is not None:
            metrics["train/loss_scale"] = parts.scaler.get_scale()
            metrics["train/num_overflows"] = float(state.num_overflows)
        if result.skipped:
            del metrics["train/grad_norm"]
        self._log.append(state.global_step, metrics)
        is_last = state.global_step == parts.settings.schedule.total_steps
        if is_last or state.global_step % self._log_every_steps == 0:
            self._tracker.log_metrics(metrics, state.global_step)

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Nothing is left to write."""
