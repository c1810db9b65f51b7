"""Which examples make up which step, and how they are laid into micro-batches.

A step's examples depend on the seed, the step and the global batch alone, or where steps are filled with tokens, on the
seed, the step and how many tokens that are. So packing, the number of processes and the way in which a step is divided
change nothing about what is learnt from in which step.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmtune.data.token_steps import fill_steps
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
    """Nominal micro-batches a step and process; nothing depends on it with `tokens_per_step`."""
    num_processes: int
    """Processes that share a step."""
    packing: bool
    """Whether examples are laid end to end instead of padded."""
    max_seq_len: int
    """Tokens of the longest example allowed."""
    tokens_per_step: int | None = None
    """Tokens that steps are filled with at most, over all processes; None is steps of `global_batch_size` examples."""

    @property
    def global_batch_size(self) -> int:
        """Examples a step, unless steps are filled with tokens."""
        assert self.tokens_per_step is None, "such steps differ in their number of examples"
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

    Steps that are filled with tokens, see `fill_steps`, are planned an epoch at a time, and one epoch may have a few
    more of them than another.

    Args:
        num_tokens: int64 [N], tokens of each example.
        num_supervised_tokens: int64 [N], those that are supervised.
        settings: batch sizes, processes and order.

    Raises:
        ValueError: there is no example, or one is longer than `max_seq_len` or `tokens_per_step`.
    """

    def __init__(self, num_tokens: np.ndarray, num_supervised_tokens: np.ndarray, settings: PlanSettings) -> None:
        if len(num_tokens) == 0:
            raise ValueError("a plan needs at least one example")
        for name in ("max_seq_len", "tokens_per_step"):
            most = getattr(settings, name)
            if most is not None and int(num_tokens.max()) > most:
                raise ValueError(f"an example has {num_tokens.max()} tokens, {name} is {most}")
        self._num_tokens = num_tokens
        self._num_supervised_tokens = num_supervised_tokens
        self._settings = settings
        self._kept: dict[int, list[np.ndarray]] = {}
        self._steps_before = [0]  # by epoch, as far as they are planned

    @property
    def settings(self) -> PlanSettings:
        """What it was made with."""
        return self._settings

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the first epoch takes every example; each epoch, unless steps are filled with tokens."""
        return self._steps_in(0)

    def count_steps(self, num_epochs: int, max_steps: int | None = None) -> int:
        """Steps of a run: whole epochs, at most `max_steps` unless it is None."""
        total = 0
        for epoch in range(num_epochs):
            if max_steps is not None and total >= max_steps:
                return max_steps  # what isn't reached isn't planned
            total += self._steps_in(epoch)
        return total if max_steps is None else min(total, max_steps)

    def epochs_done(self, num_steps: int) -> float:
        """How many passes over the examples the first `num_steps` steps are, at least one; parts of one count steps."""
        epoch, position = self._place(num_steps - 1)
        return epoch + (position + 1) / self._steps_in(epoch)

    def step(self, global_step: int, rank: int) -> PlannedStep:
        """The step after `global_step` earlier ones, as process `rank` computes it.

        Raises:
            ValueError: `global_step` is negative, or there is no such rank.
        """
        if global_step < 0 or not 0 <= rank < self._settings.num_processes:
            raise ValueError(f"no step {global_step} for rank {rank} of {self._settings.num_processes}")
        epoch, position = self._place(global_step)
        rows = self._planned(epoch)[position]
        indices = tuple(int(row) for row in rows)
        return PlannedStep(
            epoch=epoch,
            indices=indices,
            micro_batches=self._shares(indices)[rank],
            num_supervised_tokens=int(self._num_supervised_tokens[rows].sum()),
            num_tokens=int(self._num_tokens[rows].sum()),
        )

    def _place(self, global_step: int) -> tuple[int, int]:
        """Epoch and number in it, both from 0, of the step after `global_step` earlier ones."""
        if self._settings.tokens_per_step is None:
            return divmod(global_step, self.steps_per_epoch)
        while self._steps_before[-1] <= global_step:
            self._steps_in(len(self._steps_before) - 1)
        epoch = bisect_right(self._steps_before, global_step) - 1
        return epoch, global_step - self._steps_before[epoch]

    def _steps_in(self, epoch: int) -> int:
        if self._settings.tokens_per_step is None:
            return -(-len(self._num_tokens) // self._settings.global_batch_size)
        while len(self._steps_before) <= epoch + 1:
            num_steps = len(self._planned(len(self._steps_before) - 1))
            self._steps_before.append(self._steps_before[-1] + num_steps)
        return self._steps_before[epoch + 1] - self._steps_before[epoch]

    def _planned(self, epoch: int) -> list[np.ndarray]:
        """The examples of each of an epoch's steps; the last two epochs that were asked for are kept."""
        steps = self._kept.get(epoch)
        if steps is None:
            order, tokens = self._epoch_order(epoch), self._settings.tokens_per_step
            if tokens is None:
                size = self._settings.global_batch_size
                steps = [order[start : start + size] for start in range(0, len(order), size)]
            else:
                steps = [order[places] for places in fill_steps(self._num_tokens[order], tokens)]
            self._kept = {**dict(list(self._kept.items())[-1:]), epoch: steps}
        return steps

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
