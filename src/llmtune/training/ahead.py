"""A step's micro-batches as tensors, made while the step before it computes.

A step follows from the plan and its number alone, so it is the same whether it was made ahead or not, and what was made
and isn't taken is dropped.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import torch

from llmtune import signals
from llmtune.data.collate import MicroBatch, collate
from llmtune.data.plan import PlannedStep
from llmtune.distributed import rank
from llmtune.training.parts import TrainParts
from llmtune.training.splits import cut


@dataclass(frozen=True)
class _Making:
    """A step that the thread makes, or has made."""

    global_step: int
    planned: Future[PlannedStep]
    pieces: int
    passes: Future[list[list[MicroBatch]]]
    """Each micro-batch in that many pieces."""


class StepBatches:
    """A step as this process computes it: its plan, and its micro-batches on the host.

    Args:
        parts: whose step it is.
        planned: the step.
        making: the same step, made ahead; None makes it where it is used.
    """

    def __init__(self, parts: TrainParts, planned: PlannedStep, making: _Making | None = None) -> None:
        self.planned = planned
        self._parts = parts
        self._making = making

    def passes(self, pieces: int) -> Sequence[Iterable[MicroBatch]]:
        """Each micro-batch as the passes that it is cut into.

        Where they are cut otherwise than was known as the step was made, they are made here, one after the other.

        Args:
            pieces: how many to cut a micro-batch into.

        Raises:
            Exception: what making it ahead raised.
        """
        if self._making is not None and self._making.pieces == pieces:
            return self._making.passes.result()
        return [collated(self._parts, micro_batch, pieces) for micro_batch in self.planned.micro_batches]


class StepsAhead:
    """Makes one step after the other in a thread of its own, each while the one before it computes.

    On a GPU they lie in pinned memory, which is copied without the host waiting for the device. Torch uses such memory
    again only once the copies out of it are done.

    A context manager: nothing else may ask the plan for steps within it, and on leaving it the thread ends.

    Args:
        parts: plan, examples and how they are cut.
    """

    def __init__(self, parts: TrainParts) -> None:
        self._parts = parts
        self._next: _Making | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")

    def __enter__(self) -> Self:
        if self._parts.device.type == "cuda":  # a thread begins with the first GPU, whichever this process computes on
            self._thread.submit(torch.cuda.set_device, torch.cuda.current_device())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is being made, unless a second signal ends the process, and begin nothing more."""
        self._next = None
        self._thread.shutdown(wait=not signals.asked_twice(), cancel_futures=True)

    def take(self, global_step: int) -> StepBatches:
        """The step after `global_step` earlier ones; the one after it is begun.

        Raises:
            Exception: what planning it raised.
        """
        making, self._next = self._next, None
        if making is None or making.global_step != global_step:
            making = self._begin(global_step)
        planned = making.planned.result()
        if global_step + 1 < self._parts.settings.schedule.total_steps:
            self._next = self._begin(global_step + 1)
        return StepBatches(self._parts, planned, making)

    def _begin(self, global_step: int) -> _Making:
        pieces = self._parts.splits.pieces(global_step + 1)
        planned = self._thread.submit(self._parts.plan.step, global_step, rank())
        passes = self._thread.submit(_make, self._parts, planned, pieces)
        return _Making(global_step, planned, pieces, passes)


def collated(parts: TrainParts, micro_batch: tuple[int, ...], pieces: int) -> Iterator[MicroBatch]:
    """A micro-batch as the passes that it is cut into, each made as it is asked for.

    Args:
        parts: the examples, and how they are laid out.
        micro_batch: rows of the table.
        pieces: how many passes at most; it changes memory alone.
    """
    settings = parts.settings
    for indices in cut(micro_batch, parts.table.num_tokens, pieces, packed=settings.packed):
        yield collate(parts.table, indices, packed=settings.packed, pad_token_id=settings.pad_token_id)


def _make(parts: TrainParts, planned: Future[PlannedStep], pieces: int) -> list[list[MicroBatch]]:
    pinned = parts.device.type == "cuda"
    micro_batches = planned.result().micro_batches
    made = [list(collated(parts, micro_batch, pieces)) for micro_batch in micro_batches]
    return [[_pinned(batch) for batch in passes] for passes in made] if pinned else made


def _pinned(batch: MicroBatch) -> MicroBatch:
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, **{name: value.pin_memory() for name, value in tensors.items()})
