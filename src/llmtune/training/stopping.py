"""A signal during training: the step under way is finished and saved, in every process the same step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llmtune import signals
from llmtune.logs import say
from llmtune.training.collectives import several_processes, sum_over_ranks
from llmtune.training.parts import TrainParts, TrainState

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C", signal.SIGHUP: "SIGHUP"}


@contextmanager
def stopping_after_a_step(parts: TrainParts, state: TrainState) -> Iterator[None]:
    """Within it the first SIGTERM or Ctrl-C sets `state.should_stop` after the step under way; a second ends at once.

    Left after the first, the process ends as the signal asks; the checkpoint callback has saved by then.

    Several processes add up who was asked beside each step's loss, so all of them stop after the same step: where the
    figures of steps are read, as nothing else waits for the device.
    """

    def tell(number: signal.Signals) -> None:
        under_way = "the steps under way" if several_processes() else f"step {state.global_step + 1}"
        say(f"{_NAMES[number]}: finishing {under_way}, then saving; once more stops at once")

    with signals.finishing(tell):
        yield
        number = parts.watch.stopped_by or signals.asked_to_stop()
    if number is not None:
        signals.end_as(number)


def sum_of_loss(parts: TrainParts, loss: torch.Tensor) -> torch.Tensor:
    """The step's loss, added up over the processes; in the same sum travels which of them were asked to stop."""
    if not several_processes():
        return loss
    flags = [torch.full_like(loss, flag) for flag in signals.stop_flags()]
    summed = sum_over_ranks(torch.stack([loss, *flags]))
    parts.watch.stop_flags = parts.watch.stop_flags + summed[1:]
    return summed[0]


@contextmanager
def stopping_instead(parts: TrainParts, state: TrainState) -> Iterator[None]:
    """Stop after this step where what is done within is left unfinished for a signal."""
    try:
        yield
    except signals.Unfinished as left:
        heed(parts, state, left.number)


def heed(parts: TrainParts, state: TrainState, number: signal.Signals | None) -> None:
    """Stop after this step where a signal asks for it."""
    if number is not None:
        parts.watch.stopped_by = parts.watch.stopped_by or number
        state.should_stop = True


def heed_own(parts: TrainParts, state: TrainState) -> None:
    """Stop after this step where a signal came; of several processes none decides alone."""
    if not several_processes():
        heed(parts, state, signals.asked_to_stop())
