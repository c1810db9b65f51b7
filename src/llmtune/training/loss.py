"""The loss of a step, its gradients, and what a loss that isn't finite is traced to."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from llmtune.data.collate import MicroBatch
from llmtune.models.token_loss import token_loss_sum
from llmtune.training.collectives import sum_over_ranks
from llmtune.training.parts import TrainParts

_MOST_NAMED = 16


def micro_batch_loss(model: nn.Module, batch: MicroBatch, divisor: int) -> torch.Tensor | None:
    """This micro-batch's share of the step's loss, a float64 scalar; None where it has no supervised token.

    The shares of a step's micro-batches over all processes add up to its mean loss in nats per supervised token, so
    every supervised token of a step weighs the same, however the step is cut.

    Args:
        model: the trainable model.
        batch: on the model's device.
        divisor: supervised tokens of the whole step.
    """
    total = token_loss_sum(model, **batch.inputs)
    return None if total is None else total / divisor


def accumulate_gradients(
    parts: TrainParts, micro_batches: Sequence[Iterable[MicroBatch]], divisor: int
) -> torch.Tensor:
    """Run forward and backward over this process's micro-batches of a step.

    Args:
        parts: what is trained, on what.
        micro_batches: each as the passes that it is cut into, on the host.
        divisor: supervised tokens of the whole step.

    Returns:
        Each micro-batch's share of the step's loss, float64 [number of micro-batches], on the device.
    """
    shares = torch.zeros(len(micro_batches), dtype=torch.float64, device=parts.device)
    for number, passes in enumerate(micro_batches):
        for batch in passes:
            if parts.captured is not None:
                shares[number] += parts.captured.run(batch, divisor)
                continue
            with parts.precision.autocast():
                loss = micro_batch_loss(parts.model, batch.to(parts.device), divisor)
            if loss is None:
                continue
            shares[number] += loss.detach()
            (loss if parts.scaler is None else parts.scaler.scale(loss)).backward()
    return shares


def name_examples(parts: TrainParts, micro_batches: Sequence[tuple[int, ...]], shares: torch.Tensor) -> str:
    """Ids and sources of the step's examples whose micro-batch has no finite loss; of all where each has one.

    All processes' examples are named, so every process must call it: rows of the table are flagged, the flags added up.
    """
    flags = torch.zeros(2, len(parts.table), dtype=torch.int32, device=parts.device)
    for indices, share in zip(micro_batches, shares.tolist(), strict=True):
        rows = torch.tensor(indices, dtype=torch.long, device=parts.device)
        flags[0, rows] = 1
        flags[1, rows] = 0 if abs(share) < float("inf") else 1
    in_step, bad = sum_over_ranks(flags).cpu()
    rows = torch.nonzero(bad if bool(bad.any()) else in_step).flatten().tolist()
    named = ", ".join(f"{parts.table.example_id(row)} ({parts.table.source(row)})" for row in rows[:_MOST_NAMED])
    return named if len(rows) <= _MOST_NAMED else f"{named} and {len(rows) - _MOST_NAMED} more"
