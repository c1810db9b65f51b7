"""Which examples make up which step, and how they are laid into micro-batches.

A step's examples depend on the seed, the step and the global batch alone, so packing, the number of processes and the
way in which the global batch is divided change nothing about what is learnt from in which step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmtune.seeding import derived_seed

MicroBatches = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What a plan depends on beside the examples' lengths."""

    seed: int
    """Decides the order of the examples in each epoch."""
    micro_batch_size: int
    """Examples in a micro-batch; packed, room for this many of the longest examples."""
    gradient_accumulation_steps: int
    """Nominal micro-batches a step and process."""
    num_processes: int
    """Processes that share a step."""
    packing: bool
    """Whether examples are laid end to end instead of padded."""
    max_seq_len: int
    """Tokens of the longest example allowed."""

    @property
    def global_batch_size(self) -> int:
        """Examples a step."""
        return self.micro_batch_size * self.gradient_accumulation_steps * self.num_processes

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens in a packed micro-batch at most."""
        return self.micro_batch_size * self.max_seq_len


@dataclass(frozen=True)
class PlannedStep:
    """One step as one process computes it."""

    epoch: int
    """Counts from 0."""
    indices: tuple[int, ...]
    """Examples of the step, of all processes, in the epoch's order."""
    micro_batches: MicroBatches
    """This process's share; empty where a small last step has nothing for it, which must still take part in the
    exchange of gradients."""
    num_supervised_tokens: int
    """Supervised tokens of the whole step, all processes: what the summed loss is divided by."""
    num_tokens: int
    """Tokens of the whole step, all processes."""


class StepPlan:
    """The steps of any number of epochs. Each epoch takes every example once, its last step may be smaller.

    Args:
        num_tokens: int64 [N], tokens of each example.
        num_supervised_tokens: int64 [N], those that are supervised.
        settings: batch sizes, processes and order.

    Raises:
        ValueError: there is no example, or one is longer than `max_seq_len`.
    """

    def __init__(self, num_tokens: np.ndarray, num_supervised_tokens: np.ndarray, settings: PlanSettings) -> None:
        if len(num_tokens) == 0:
            raise ValueError("a plan needs at least one example")
        if int(num_tokens.max()) > settings.max_seq_len:
            raise ValueError(f"an example has {num_tokens.max()} tokens, max_seq_len is {settings.max_seq_len}")
        self._num_tokens = num_tokens
        self._num_supervised_tokens = num_supervised_tokens
        self._settings = settings
        self._order: tuple[int, np.ndarray] = (0, self._epoch_order(0))

    @property
    def settings(self) -> PlanSettings:
        """What it was made with."""
        return self._settings

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which an epoch takes every example."""
        return -(-len(self._num_tokens) // self._settings.global_batch_size)

    def step(self, global_step: int, rank: int) -> PlannedStep:
        """The step after `global_step` earlier ones, as process `rank` computes it.

        Raises:
            ValueError: `global_step` is negative, or there is no such rank.
        """
        if global_step < 0 or not 0 <= rank < self._settings.num_processes:
            raise ValueError(f"no step {global_step} for rank {rank} of {self._settings.num_processes}")
        epoch, position = divmod(global_step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch_order(epoch))
        size = self._settings.global_batch_size
        rows = self._order[1][position * size : (position + 1) * size]
        indices = tuple(int(row) for row in rows)
        return PlannedStep(
            epoch=epoch,
            indices=indices,
            micro_batches=self._shares(indices)[rank],
            num_supervised_tokens=int(self._num_supervised_tokens[rows].sum()),
            num_tokens=int(self._num_tokens[rows].sum()),
        )

    def _epoch_order(self, epoch: int) -> np.ndarray:
        stream = np.random.Generator(np.random.Philox(derived_seed(self._settings.seed, "order", epoch)))
        return stream.permutation(len(self._num_tokens))

    def _shares(self, indices: Sequence[int]) -> list[MicroBatches]:
        """Micro-batches of each process."""
        lengths = {index: int(self._num_tokens[index]) for index in indices}
        settings = self._settings
        if not settings.packing:
            return padded_shares(lengths, settings.micro_batch_size, settings.num_processes)
        return [packed(share, settings.micro_batch_tokens) for share in balanced(lengths, settings.num_processes)]


def divide(global_batch_size: int, num_processes: int, most_examples: int) -> tuple[int, int]:
    """Divide a step among processes, with micro-batches as large as may be.

    Args:
        global_batch_size: examples a step.
        num_processes: processes that share a step.
        most_examples: examples that a micro-batch may have.

    Returns:
        Examples of a micro-batch, and micro-batches a step and process: their product with the processes is the step.

    Raises:
        ValueError: the processes' shares can't be equal.
    """
    share, rest = divmod(global_batch_size, num_processes)
    if rest:
        fitting = [str(count) for count in range(1, global_batch_size + 1) if global_batch_size % count == 0]
        raise ValueError(
            f"{global_batch_size} examples a step can't be divided by {num_processes} processes, "
            f"only by {', '.join(fitting)}"
        )
    size = next(size for size in range(min(most_examples, share), 0, -1) if share % size == 0)
    return size, share // size


def balanced(lengths: dict[int, int], num_shares: int) -> list[dict[int, int]]:
    """Divide examples so that the shares have about the same number of tokens; each keeps the examples' order.

    Longest first, each goes to the share with the fewest tokens so far; the lower number wins a draw.

    Args:
        lengths: tokens by example.
        num_shares: number of shares; some are empty where there are fewer examples.
    """
    if num_shares == 1:
        return [lengths]
    totals = [0] * num_shares
    share_of: dict[int, int] = {}
    for index in sorted(lengths, key=lambda index: -lengths[index]):
        share_of[index] = totals.index(min(totals))
        totals[share_of[index]] += lengths[index]
    return [{index: lengths[index] for index in lengths if share_of[index] == share} for share in range(num_shares)]


def packed(lengths: dict[int, int], max_tokens: int) -> MicroBatches:
    """Examples end to end, cut at example borders into micro-batches of at most `max_tokens` tokens."""
    micro_batches: list[tuple[int, ...]] = []
    current: list[int] = []
    num_tokens = 0
    for index, length in lengths.items():
        if current and num_tokens + length > max_tokens:
            micro_batches.append(tuple(current))
            current, num_tokens = [], 0
        current.append(index)
        num_tokens += length
    return tuple([*micro_batches, tuple(current)]) if current else tuple(micro_batches)


def padded_shares(lengths: dict[int, int], micro_batch_size: int, num_processes: int) -> list[MicroBatches]:
    """Micro-batches of examples of similar length for each process, longest first.

    Micro-batches are dealt out in turn, to and fro, so that processes have about the same number of tokens.
    """
    by_length = sorted(lengths, key=lambda index: -lengths[index])
    shares: list[list[tuple[int, ...]]] = [[] for _ in range(num_processes)]
    for number, start in enumerate(range(0, len(by_length), micro_batch_size)):
        turn, place = divmod(number, num_processes)
        rank = place if turn % 2 == 0 else num_processes - 1 - place
        shares[rank].append(tuple(by_length[start : start + micro_batch_size]))
    return [tuple(share) for share in shares]
