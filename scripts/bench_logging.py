"""Measures what recording costs a training step: progress line, metrics file and MLflow, against none of them.

Usage: python scripts/bench_logging.py [--step-ms 100] [--steps 100] [--rounds 3] [--work sleep|compute] [--folder DIR]

The loop is llmtune's, the model a matrix whose forward pass takes as long as is asked for: asleep, as a host is that
waits for a GPU, or computing on every core, as on a CPU. Recording is that of a run: `metrics.jsonl`, an SQLite store
with system metrics, sent to every 10 steps (the default of `train.log_every_steps`) or at each. The variants run in
turn, in another order each round; making and closing the store isn't timed, nor the first steps. Overhead is the mean
step's time above that without recording in the same round; beside it stands what the loop itself spent in callbacks,
which other programs on the machine disturb less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from random_tokens import RandomTokens
from torch import nn

from llmtune.data.plan import PlanSettings, StepPlan
from llmtune.logs import progress, start_logging
from llmtune.models.precision import Precision
from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.tracking.mlflow import MlflowTracker, TrackedRun
from llmtune.training.callbacks.idle import IdleCallback
from llmtune.training.callbacks.metrics import MetricsCallback
from llmtune.training.callbacks.progress import ProgressCallback
from llmtune.training.loop import train
from llmtune.training.optimizer import make_optimizer
from llmtune.training.parts import Callback, LoopSettings, StepResult, TrainParts, TrainState
from llmtune.training.schedule import ScheduleSettings

VARIANTS: dict[str, int | None] = {"none": None, "every 10 steps": 10, "every step": 1}
"""Steps between two entries of the tracker; None records nothing."""
BAR = 0.01
FIRST_STEPS = 5
_EXAMPLES, _TOKENS, _VOCABULARY = 64, 32, 64


class Slow(nn.Module):
    """Predicts a token from the one before it, and takes its time.

    Args:
        work: what it does for as long as a step is to last.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, 16)
        self.head = nn.Linear(16, _VOCABULARY)
        self._work = work

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        """Logits [B, T, V]."""
        self._work()
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


@dataclass
class Spent:
    """A callback that passes on to another, and keeps the seconds that each step spent in it, and computing in it."""

    callback: Callback
    seconds: list[tuple[float, float]] = field(default_factory=list)

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """Pass on."""
        self.callback.on_train_start(parts, state)

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Pass on, timed."""
        started, computed = time.perf_counter(), time.thread_time()
        self.callback.on_step_end(parts, state, result)
        self.seconds.append((time.perf_counter() - started, time.thread_time() - computed))

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Pass on."""
        self.callback.on_train_end(parts, state)


@dataclass
class Clock:
    """A callback that keeps when each step ended."""

    ends: list[float] = field(default_factory=list)

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """Nothing."""

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Look."""
        self.ends.append(time.perf_counter())

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Nothing."""


def make_parts(arguments: argparse.Namespace) -> TrainParts:
    """What the loop needs around a model that takes its time."""
    torch.manual_seed(0)
    model, table = Slow(_work(arguments)), RandomTokens(_EXAMPLES, _TOKENS, _VOCABULARY)
    settings = PlanSettings(
        seed=1,
        micro_batch_size=4,
        gradient_accumulation_steps=1,
        num_processes=1,
        packing=False,
        max_seq_len=_TOKENS,
    )
    return TrainParts(
        model=model,
        method=cast(Any, None),
        optimizer=make_optimizer(model, "adamw", 1e-3, 0.0),
        plan=StepPlan(table.num_tokens, table.num_supervised_tokens, settings),
        table=cast(Any, table),
        precision=Precision("fp32", "cpu", "for the measurement"),
        device=torch.device("cpu"),
        settings=LoopSettings(1, ScheduleSettings("constant", 1e-3, 0, arguments.steps), 1.0, False, 0),
    )


def _work(arguments: argparse.Namespace) -> Callable[[], None]:
    seconds = arguments.step_ms / 1e3
    if arguments.work == "sleep":
        return lambda: time.sleep(seconds)
    matrix = torch.rand(1024, 1024)
    started = time.perf_counter()
    for _ in range(10):
        torch.mm(matrix, matrix)
    count = max(1, round(10 * seconds / (time.perf_counter() - started)))

    def compute() -> None:
        for _ in range(count):
            torch.mm(matrix, matrix)

    return compute


@contextmanager
def recording(folder: Path, every_steps: int | None, num_steps: int) -> Iterator[Sequence[Callback]]:
    """The callbacks of a run that record, or none."""
    if every_steps is None:
        yield []
        return
    run = RunFolder(folder / "runs" / "measured")
    run.path.mkdir(parents=True)
    start_logging(run.path / "run.log")
    tracked = TrackedRun(experiment="measured", name="measured", tags={"run_folder": str(run.path)})
    with ExitStack() as stack:
        tracker = MlflowTracker(f"sqlite:///{folder / 'mlflow.db'}", tracked, folder, system_metrics=True)
        stack.callback(tracker.close, "FINISHED")
        line = stack.enter_context(progress("train", num_steps))
        metrics = MetricsCallback(MetricsLog(run.metrics_file), tracker, every_steps)
        yield [ProgressCallback(line), metrics, IdleCallback()]


def measured(arguments: argparse.Namespace, every_steps: int | None) -> tuple[float, list[tuple[float, float]]]:
    """Mean seconds of a step, and the seconds that each spent in callbacks and computing there."""
    parts, clock = make_parts(arguments), Clock()
    with (
        tempfile.TemporaryDirectory(dir=arguments.folder, ignore_cleanup_errors=True) as folder,
        recording(Path(folder), every_steps, arguments.steps) as callbacks,
    ):
        spent = [Spent(callback) for callback in callbacks]
        train(parts, TrainState(), [*spent, clock])
    mean = (clock.ends[-1] - clock.ends[FIRST_STEPS - 1]) / (arguments.steps - FIRST_STEPS)
    by_step = zip(*(callback.seconds[FIRST_STEPS:] for callback in spent), strict=True)
    return mean, [(sum(times), sum(computed)) for times, computed in (zip(*step, strict=True) for step in by_step)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--step-ms", type=float, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", choices=("sleep", "compute"), default="sleep")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.work == "sleep":
        torch.set_num_threads(1)  # the little that is computed is no work for several
    names, means = list(VARIANTS), {name: [] for name in VARIANTS}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for number in range(arguments.rounds):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            mean, in_callbacks = measured(arguments, VARIANTS[name])
            means[name].append(mean)
            spent[name] += in_callbacks
    start_logging(None)
    print(f"\nsteps of {arguments.step_ms:g} ms ({arguments.work}), {arguments.steps} a run, {arguments.rounds} rounds")
    print(f"{'':46}{'ms in callbacks, by step':>32}")
    print(
        f"{'recorded':16}{'ms a step':>10}{'overhead':>10}{'from':>10}{'to':>10}{'mean':>8}{'most':>8}{'computing':>12}"
    )
    for name in names:
        overheads = [mean / base - 1 for mean, base in zip(means[name], means["none"], strict=True)]
        figures = f"{statistics.median(means[name]) * 1e3:10.2f}"
        if VARIANTS[name] is not None:
            figures += f"{statistics.median(overheads):10.2%}{min(overheads):10.2%}{max(overheads):10.2%}"
            times, computed = ([1e3 * value for value in column] for column in zip(*spent[name], strict=True))
            figures += f"{statistics.mean(times):8.3f}{max(times):8.2f}{statistics.mean(computed):12.3f}"
            figures += "" if statistics.median(overheads) <= BAR else f"   over {BAR:.0%}"
        print(f"{name:16}{figures}")


if __name__ == "__main__":
    main()
