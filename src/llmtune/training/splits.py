"""Micro-batches cut finer where memory is short: the same step in more passes, smaller ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmtune.data.plan import MicroBatches, balanced, padded_shares


@dataclass(frozen=True)
class Split:
    """Into how many pieces each micro-batch is cut from a step on."""

    from_step: int
    """The first step that is computed so, counted from 1."""
    pieces: int


class Splits:
    """Into how many pieces each step's micro-batches are cut; from one step to the next the number only grows.

    Every split is kept with its step, so that a step which is made again after a resume is cut as it was before.

    Args:
        known: splits so far.
        keep: called with all splits before a new one is used.
    """

    def __init__(
        self, known: Sequence[Split] = (Split(1, 1),), keep: Callable[[Sequence[Split]], None] | None = None
    ) -> None:
        self._all = list(known)
        self._keep = keep

    def pieces(self, number: int) -> int:
        """How many pieces in step `number`, counted from 1."""
        return max((split.pieces for split in self._all if split.from_step <= number), default=1)

    def add(self, split: Split) -> None:
        """Cut finer from a step on, once that is kept."""
        if self._keep is not None:
            self._keep([*self._all, split])
        self._all.append(split)

    def begin(self, pieces: int) -> None:
        """Cut all steps of a run that hasn't begun; it is kept with the run's other choices."""
        self._all = [Split(1, pieces)]

    @property
    def all(self) -> tuple[Split, ...]:
        """The splits in the order in which they became needed."""
        return tuple(self._all)


def cut(micro_batch: tuple[int, ...], num_tokens: np.ndarray, pieces: int, *, packed: bool) -> MicroBatches:
    """The micro-batch's examples in at most that many smaller ones of about equally many positions.

    Args:
        micro_batch: rows of the table.
        num_tokens: tokens of every row.
        pieces: how many; examples stay whole, so there are at most as many as examples.
        packed: whether examples lie end to end, or are padded to the longest.
    """
    if pieces == 1:
        return (micro_batch,)
    lengths = {index: int(num_tokens[index]) for index in micro_batch}
    if not packed:
        return padded_shares(lengths, -(-len(micro_batch) // pieces), 1)[0]
    return tuple(tuple(piece) for piece in balanced(lengths, pieces) if piece)


def positions(piece: Sequence[int], num_tokens: np.ndarray, *, packed: bool) -> int:
    """Positions that a forward pass over these examples computes, padding included."""
    lengths = [int(num_tokens[index]) for index in piece]
    return sum(lengths) if packed else max(lengths) * len(lengths)
