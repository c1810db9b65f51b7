"""Forward and backward over a micro-batch captured once as a CUDA graph, and replayed for each.

A small model's step is thousands of short kernels, which a host launches one by one; a replay is one launch. The same
kernels run on the same numbers.
"""

import gc
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llmtune.data.collate import MicroBatch
from llmtune.distributed import rank
from llmtune.models.attention import VARLEN_KERNEL, attention_of
from llmtune.models.chunked_loss import OutputHead, chunked_cross_entropy_sum, output_head
from llmtune.models.fast.decoder import decoder_of
from llmtune.models.fast.kernels import PLAIN
from llmtune.training.ahead import collated
from llmtune.training.loss import accumulate_gradients
from llmtune.training.parts import TrainParts

_MOST_PADDING = 0.03
"""Share of the computed positions that may be filled up to the one shape that is captured."""
_WARM_UP = 2
"""Passes before the capture, in which kernels are compiled and libraries take their workspaces."""
_WORTH = 2.0
"""How many times what the capture took a run has to save."""
_NOBODYS = -1
"""Target of a position that only fills up."""


@dataclass(frozen=True)
class CaptureChoice:
    """Whether a run's passes are captured."""

    captured: bool
    reason: str
    """Why, in words."""


NOT_TRIED = CaptureChoice(False, "not tried yet")


@dataclass(frozen=True)
class PassShape:
    """The one shape into which all micro-batches of a plan fit."""

    num_tokens: int
    num_examples: int
    num_supervised: int
    padding: float
    """Share of positions that are computed and belong to no example, from 0 to 1, over the whole plan."""


def choose_capture(parts: TrainParts, wanted: Literal["auto"] | bool, *, begun: bool | None) -> CaptureChoice:
    """Capture the run's pass into `parts.captured` where it can be, and is worth its while.

    Args:
        parts: what is trained; how micro-batches are cut is settled.
        wanted: `train.compile`.
        begun: what a run chose that now goes on; None for a new one.
    """
    wanted = wanted if begun is None else begun
    if not wanted:
        return CaptureChoice(False, "asked for by train.compile" if begun is None else "as the run began")
    if wanted == "auto" and torch.are_deterministic_algorithms_enabled():
        return CaptureChoice(False, "what is worth its while is told by the clock, and train.deterministic=true")
    fault = _what_hinders(parts)
    if fault is not None:
        return CaptureChoice(False, fault)
    if not parts.plan.step(0, rank()).micro_batches:
        return CaptureChoice(False, "this process has no part in the first step")
    shape = _shape(parts)
    if shape.padding > _MOST_PADDING:
        return CaptureChoice(
            False,
            f"micro-batches of one size would be {shape.padding:.0%} padding; train.batch_unit=tokens makes them alike",
        )
    try:
        return _try(parts, shape, keep=wanted is True)
    except RuntimeError as error:
        parts.captured = None
        return CaptureChoice(False, f"it failed: {str(error).splitlines()[0]}")
    finally:
        if parts.captured is None:
            release_capture(parts)


def release_capture(parts: TrainParts) -> None:
    """Launch kernels one by one again, and give back what a captured pass held."""
    parts.captured = None
    parts.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()


def shape_of(sizes: Sequence[tuple[int, int, int]]) -> PassShape:
    """The shape into which micro-batches fit.

    Args:
        sizes: tokens, examples and supervised tokens of each.
    """
    tokens, examples, supervised = (max(column) for column in zip(*sizes, strict=True))
    return PassShape(tokens, examples, supervised, 1 - sum(size[0] for size in sizes) / (tokens * len(sizes)))


class CapturedPass:
    """A micro-batch's forward and backward pass as a graph; gradients are added to the parameters' own.

    Args:
        parts: what is trained, on a GPU, with llmtune's decoder and losses by chunks.
        shape: of all micro-batches.

    Raises:
        RuntimeError: something in the pass can't be captured.
    """

    def __init__(self, parts: TrainParts, shape: PassShape) -> None:
        self._parts, self._shape = parts, shape
        device, tokens = parts.device, shape.num_tokens
        self._input_ids = torch.zeros(1, tokens, dtype=torch.int64, device=device)
        self._position_ids = torch.zeros(1, tokens, dtype=torch.int64, device=device)
        self._longest = min(parts.plan.settings.max_seq_len, tokens)
        num_borders = 1 + shape.num_examples + -(-tokens // self._longest)
        self._borders = _borders((), num_borders, tokens, self._longest).to(device)
        self._predictors = torch.zeros(shape.num_supervised, dtype=torch.int64, device=device)
        self._targets = torch.full((shape.num_supervised,), _NOBODYS, dtype=torch.int64, device=device)
        self._divisor = torch.ones((), dtype=torch.float64, device=device)
        head = output_head(parts.model)
        assert isinstance(head, OutputHead), "losses are computed by chunks"
        self._head = head
        self._graph = torch.cuda.CUDAGraph()
        self._loss = self._capture()

    def run(self, batch: MicroBatch, divisor: int) -> torch.Tensor:
        """This micro-batch's share of the step's loss, float64, its gradients added.

        Args:
            batch: on the host, of no larger shape than was captured.
            divisor: supervised tokens of the whole step.
        """
        num_tokens, num_supervised = batch.input_ids.shape[1], batch.targets.shape[0]
        borders = _borders(batch.lengths, len(self._borders), self._shape.num_tokens, self._longest)
        self._borders.copy_(borders.pin_memory(), non_blocking=True)
        self._input_ids[:, :num_tokens].copy_(batch.input_ids, non_blocking=True)
        self._position_ids[:, :num_tokens].copy_(batch.position_ids, non_blocking=True)
        self._predictors[:num_supervised].copy_(batch.predicted, non_blocking=True)
        self._predictors[:num_supervised].sub_(1)
        self._targets[:num_supervised].copy_(batch.targets, non_blocking=True)
        self._targets[num_supervised:].fill_(_NOBODYS)
        self._divisor.fill_(divisor)
        self._graph.replay()
        return self._loss.clone()

    def _pass(self) -> torch.Tensor:
        decoder = decoder_of(self._parts.model)
        assert decoder is not None, "llmtune's decoder computes the run"
        inputs: dict[str, Any] = {
            "input_ids": self._input_ids,
            "position_ids": self._position_ids,
            "cu_seq_lens_q": self._borders,
            "max_length_q": self._longest,
        }
        with self._parts.precision.autocast():
            hidden = decoder.final_hidden_states(inputs)[0][self._predictors]
            loss = chunked_cross_entropy_sum(hidden, self._head, self._targets) / self._divisor
        loss.backward()
        return loss.detach()

    def _capture(self) -> torch.Tensor:
        parts = self._parts
        for parameter in parts.trainable:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        parts.model.train()
        with torch.random.fork_rng([parts.device]):
            stream = torch.cuda.Stream(parts.device)
            stream.wait_stream(torch.cuda.current_stream(parts.device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self._pass()
            torch.cuda.current_stream(parts.device).wait_stream(stream)
            torch.cuda.synchronize(parts.device)
            with torch.cuda.graph(self._graph):
                loss = self._pass()
        torch._foreach_zero_([parameter.grad for parameter in parts.trainable if parameter.grad is not None])
        return loss


def _what_hinders(parts: TrainParts) -> str | None:
    """Why a pass can't be captured; None where it can."""
    decoder = decoder_of(parts.model)
    if parts.device.type != "cuda":
        return "there is no GPU"
    if decoder is None or not parts.settings.packed:
        return "llmtune's own decoder isn't used"
    if decoder.kernels is PLAIN:  # whose losses know no `_NOBODYS`
        return "there are no kernels of Triton's"
    if attention_of(parts.model) != VARLEN_KERNEL:
        return f"{attention_of(parts.model)} asks where examples end"
    if parts.scaler is not None:
        return "the loss scale changes from step to step"
    if decoder.recompute == "blocks" and decoder.drops:
        return "activations are computed again under dropout"
    if parts.splits.all[-1].pieces > 1:
        return "micro-batches are cut, as memory is short"
    return None


def _shape(parts: TrainParts) -> PassShape:
    """Of this process's micro-batches, the shape into which all fit."""
    table, total = parts.table, parts.settings.schedule.total_steps
    sizes = [
        (
            int(table.num_tokens[list(micro_batch)].sum()),
            len(micro_batch),
            int(table.num_supervised_tokens[list(micro_batch)].sum()),
        )
        for number in range(total)
        for micro_batch in parts.plan.step(number, rank()).micro_batches
    ]
    return shape_of(sizes)


def _try(parts: TrainParts, shape: PassShape, *, keep: bool) -> CaptureChoice:
    """Capture, and compare with launching each kernel; kept where that is asked for, or where it saves enough."""
    first = parts.plan.step(0, rank()).micro_batches
    batch = next(collated(parts, first[0], 1))
    launched = _seconds(parts, batch)
    started = time.perf_counter()
    captured = CapturedPass(parts, shape)
    torch.cuda.synchronize(parts.device)
    cost = time.perf_counter() - started
    parts.captured = captured
    replayed = _seconds(parts, batch)
    num_passes = parts.settings.schedule.total_steps * len(first)
    saved = (launched - replayed) * num_passes
    told = f"{launched * 1e3:.0f} ms a pass launched kernel by kernel, {replayed * 1e3:.0f} ms captured"
    if keep or saved >= _WORTH * cost:
        return CaptureChoice(True, told)
    parts.captured = None
    return CaptureChoice(False, f"{told}: not worth its while in this run")


def _seconds(parts: TrainParts, batch: MicroBatch) -> float:
    """What a pass takes, the second of two; gradients are left at zero."""
    seconds = 0.0
    with torch.random.fork_rng([parts.device]):
        for _ in range(2):
            torch.cuda.synchronize(parts.device)
            started = time.perf_counter()
            accumulate_gradients(parts, [[batch]], 1)
            torch.cuda.synchronize(parts.device)
            seconds = time.perf_counter() - started
    parts.optimizer.zero_grad(set_to_none=parts.captured is None)
    return seconds


def _borders(lengths: Sequence[int], num_borders: int, num_tokens: int, longest: int) -> torch.Tensor:
    """Where examples begin and end, int32 [num_borders]; what fills the row up is examples of at most `longest`."""
    used = sum(lengths)
    fill = range(used + longest, num_tokens, longest)
    ends = [0, *itertools.accumulate(lengths), *fill]
    return torch.tensor(ends + [num_tokens] * (num_borders - len(ends)), dtype=torch.int32)
