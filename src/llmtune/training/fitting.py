"""A step made to fit in memory: tried before the first one, and repeated in smaller passes where it runs out later.

However a step is cut, its loss and gradient are the same sums over the same tokens, divided by the same number.
"""

import gc
from collections.abc import Sequence
from contextlib import suppress

import torch

from llmtune.distributed import rank
from llmtune.errors import LlmtuneError
from llmtune.logs import say, warn
from llmtune.models.decoding import Recomputed, recompute_activations
from llmtune.seeding import derived_seed
from llmtune.training.ahead import StepBatches, collated
from llmtune.training.collectives import most_over_ranks, several_processes
from llmtune.training.loss import accumulate_gradients
from llmtune.training.out_of_memory import out_of_memory
from llmtune.training.parts import TrainParts
from llmtune.training.splits import Split, cut, positions

_NEVER = 2**31
"""Pieces, where nothing fits however it is cut."""
_LEVELS: tuple[Recomputed, ...] = ("gates", "blocks")
"""What is computed again, the cheaper first."""
_IN_WORDS = {"gates": "the widest activations", "blocks": "activations"}


class ExampleTooLarge(LlmtuneError):
    """Memory ran out with a single example in each pass.

    Args:
        message: what happened.
        recomputing: whether activation checkpointing was on, where it isn't recorded yet.
    """

    def __init__(self, message: str, *, recomputing: bool = False) -> None:
        super().__init__(message)
        self.recomputing = recomputing


def fitting_gradients(parts: TrainParts, global_step: int, step: StepBatches) -> torch.Tensor:
    """Run forward and backward over this process's micro-batches of a step, see `accumulate_gradients`.

    Where memory runs out and there is one process, the step is made again from its start with micro-batches cut into
    twice as many pieces; this and all later steps stay cut so.

    Args:
        parts: what is trained; `parts.splits` says how micro-batches are cut.
        global_step: steps done before this one.
        step: its batches.

    Raises:
        ExampleTooLarge: memory ran out with one example a pass.
    """
    number, divisor = global_step + 1, max(1, step.planned.num_supervised_tokens)
    while True:
        pieces = parts.splits.pieces(number)
        torch.manual_seed(derived_seed(parts.settings.seed, "step", global_step, rank()))
        try:
            return accumulate_gradients(parts, step.passes(pieces), divisor)
        except Exception as error:
            finer = _finer(parts, step, pieces, error)
            if finer is None:
                raise
            where = out_of_memory(error)
        # Out of the handler: as long as the error lives, so does what the failed pass held.
        parts.captured = None  # it is of whole micro-batches
        release(parts)
        parts.splits.add(Split(number, finer))
        warn(
            f"step {number}: the {where} is out of memory; from this step on each micro-batch is cut into {finer} "
            "pieces: the same step, slower"
        )


def _finer(parts: TrainParts, step: StepBatches, pieces: int, error: Exception) -> int | None:
    """Into how many pieces to cut after `error`; None where it has another cause, or other processes wait.

    Raises:
        ExampleTooLarge: each piece is a single example already.
    """
    where = out_of_memory(error)
    if where is None or several_processes() or (parts.device.type == "cuda" and where == "machine"):
        return None
    most = max(len(micro_batch) for micro_batch in step.planned.micro_batches)
    if pieces >= most:
        raise ExampleTooLarge("memory runs out with a single example a pass") from error
    return min(2 * pieces, most)


def fit_memory(parts: TrainParts, optimizer_bytes: float, recomputed: Recomputed | None) -> Recomputed | None:
    """Cut micro-batches, before the first step, until the plan's largest fits; `parts.splits` gets how fine.

    Forward and backward of the largest are tried, while room is held for what isn't allocated yet. Micro-batches are
    cut into 2, 4, ... pieces; where single examples don't fit, the widest activations are computed again, then all of
    them, and cutting is tried again. Several processes take the finest that one of them needs. Weights, gradients and
    random streams are left as they were.

    Args:
        parts: what is trained.
        optimizer_bytes: of the optimizer's state that isn't allocated yet.
        recomputed: which activations are computed again already.

    Returns:
        Which are now.

    Raises:
        ExampleTooLarge: a single example doesn't fit either way.
    """
    pieces, error = _try_until_it_fits(parts, optimizer_bytes)
    for more in _LEVELS[_LEVELS.index(recomputed) + 1 :] if recomputed else _LEVELS:
        if pieces < _NEVER:
            break
        with suppress(ValueError):  # a model that has none
            recompute_activations(parts.model, more)
            recomputed = more
            say(f"a single example a pass doesn't fit in memory; {_IN_WORDS[more]} are computed again going back")
            pieces, error = _try_until_it_fits(parts, optimizer_bytes)
    if pieces == _NEVER:
        message = "memory is short of a single example a pass, in this process or another"
        raise ExampleTooLarge(message, recomputing=recomputed is not None) from error
    if pieces > 1:
        say(f"the largest micro-batch doesn't fit in memory; each is cut into {pieces} pieces: the same steps, slower")
        parts.splits.begin(pieces)
    return recomputed


def release(parts: TrainParts) -> None:
    """Give back what a failed or tried pass held: gradients, and blocks that the allocator keeps."""
    parts.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if parts.device.type == "cuda":
        torch.cuda.empty_cache()


def _try_until_it_fits(parts: TrainParts, optimizer_bytes: float) -> tuple[int, Exception | None]:
    """The fewest pieces that fit in every process, `_NEVER` for none; and this process's last error, its trace left."""
    pieces, error = 1, None
    while pieces < _NEVER:
        piece = _largest_piece(parts, pieces)
        error = _failure(parts, piece, optimizer_bytes)
        if error is None:
            break
        pieces = _NEVER if len(piece) == 1 else 2 * pieces
    return int(most_over_ranks(pieces, parts.device)), error


def _largest_piece(parts: TrainParts, pieces: int) -> tuple[int, ...]:
    """Of all passes that this process will make, the one with the most positions; of equal ones the longest example."""
    packed, num_tokens = parts.settings.packed, parts.table.num_tokens

    def size(piece: tuple[int, ...]) -> tuple[int, int]:
        return positions(piece, num_tokens, packed=packed), int(num_tokens[list(piece)].max())

    steps = (parts.plan.step(number, rank()) for number in range(parts.settings.schedule.total_steps))
    passes = (
        piece
        for step in steps
        for micro_batch in step.micro_batches
        for piece in cut(micro_batch, num_tokens, pieces, packed=packed)
    )
    return max(passes, key=size, default=())


def _failure(parts: TrainParts, piece: Sequence[int], optimizer_bytes: float) -> Exception | None:
    """The error with which memory ran out in one pass over these examples; None where it fitted."""
    was_training, failure = parts.model.training, None
    parts.model.train()
    with torch.random.fork_rng([parts.device] if parts.device.type == "cuda" else []):
        try:
            _pass_once(parts, piece, optimizer_bytes)
        except Exception as error:
            if out_of_memory(error) is None:
                raise
            failure = error.with_traceback(None)
    parts.model.train(was_training)
    release(parts)
    return failure


def _pass_once(parts: TrainParts, piece: Sequence[int], optimizer_bytes: float) -> None:
    """Forward and backward beside the optimizer's state, then the exchange of gradients."""
    held = torch.empty(int(optimizer_bytes), dtype=torch.uint8, device=parts.device)
    accumulate_gradients(parts, [collated(parts, tuple(piece), 1)] if piece else [], 1)
    if several_processes():  # lays them end to end
        gradients = sum(parameter.numel() * parameter.element_size() for parameter in parts.trainable)
        torch.empty(gradients, dtype=torch.uint8, device=parts.device)
    if parts.device.type == "cuda":
        torch.cuda.synchronize(parts.device)
    del held
