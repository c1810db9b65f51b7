"""Loss and perplexity of a model on a split, at inference speed and with flat memory."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from llmtune import distributed, process_group, signals
from llmtune.data.collate import MicroBatch, collate
from llmtune.data.token_table import TokenTable
from llmtune.errors import DataError
from llmtune.evaluation.inference import inference
from llmtune.logs import progress
from llmtune.models.precision import Precision
from llmtune.models.token_loss import token_losses


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How a split is measured."""

    batch_tokens: int
    """Positions of one forward pass, at most; a longer example has a pass of its own."""
    packed: bool
    """Whether examples lie end to end in one row, which the model's attention must keep apart; else padded rows."""
    pad_token_id: int
    """Token that fills padded rows; its positions are masked and never counted."""
    precision: Precision
    """Type of the matrix products."""
    device: torch.device
    """Where the model is."""
    description: str = "evaluate"
    """What the progress bar says."""


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """What a model's loss on a split is; arrays have one entry an example, in the table's order."""

    loss: float
    """Mean negative log likelihood in nats per supervised token: every such token weighs the same."""
    perplexity: float
    """exp of the loss."""
    bits_per_byte: float
    """Nats of all supervised tokens / (ln 2 x UTF-8 bytes of the supervised text): comparable across tokenizers."""
    num_examples: int
    num_tokens: int
    """Tokens computed, padding left out."""
    num_supervised_tokens: int
    seconds: float
    """Wall time of the whole split, over all processes."""
    tokens_per_second: float
    loss_sums: np.ndarray
    """Summed loss of each example in nats, float64 [N]."""
    supervised_tokens: np.ndarray
    """Supervised tokens of each example, int64 [N]."""
    supervised_bytes: np.ndarray
    """UTF-8 bytes of each example's supervised text, int64 [N]."""


def evaluate_loss(model: nn.Module, table: TokenTable, settings: LossSettings) -> LossReport:
    """The model's loss on every example of a split, computed in inference mode without dropout.

    Each of several processes computes a share of the batches; all of them get the whole report. The model is given
    back in the train or eval mode that it came in.

    Args:
        model: causal language model, on `settings.device`.
        table: the split.
        settings: batch size, layout and precision.

    Raises:
        DataError: the split has no supervised token.
        Unfinished: a signal came first, in one of the processes; raised in all of them.
    """
    if np.sum(table.num_supervised_tokens) == 0:
        raise DataError(
            f"there is nothing to measure: the split's {len(table)} examples have no supervised token; "
            "give more examples, or raise data.validation_fraction or data.test_fraction"
        )
    started = time.perf_counter()
    loss_sums = _sum_losses(model, table, settings)
    return make_report(table, loss_sums, time.perf_counter() - started)


def make_report(table: TokenTable, loss_sums: np.ndarray, seconds: float) -> LossReport:
    """What a split's losses come to.

    Args:
        table: the split.
        loss_sums: summed loss of each example in nats, float64 [N].
        seconds: how long computing them took.
    """
    lengths, supervised = np.asarray(table.num_tokens), np.asarray(table.num_supervised_tokens)
    total_nats = float(loss_sums.sum())
    loss = total_nats / int(supervised.sum())
    supervised_bytes = np.asarray(table.num_supervised_bytes)
    return LossReport(
        loss=loss,
        perplexity=_exp(loss),
        bits_per_byte=total_nats / (math.log(2) * max(1, int(supervised_bytes.sum()))),
        num_examples=len(lengths),
        num_tokens=int(lengths.sum()),
        num_supervised_tokens=int(supervised.sum()),
        seconds=seconds,
        tokens_per_second=int(lengths.sum()) / seconds,
        loss_sums=loss_sums,
        supervised_tokens=supervised,
        supervised_bytes=supervised_bytes,
    )


def write_predictions(report: LossReport, table: TokenTable, clusters: Sequence[str], path: Path) -> None:
    """Write each example's loss as Parquet, in the table's order.

    Columns: `example_id`, `cluster`, `loss_sum` (nats), `num_supervised_tokens`, `num_supervised_bytes` (of their
    text), `num_tokens`.

    Args:
        report: the losses.
        table: the split.
        clusters: what each example belongs to: those of one cluster can't be taken as independent.
        path: the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "example_id": pa.array(table.example_ids(), pa.string()),
        "cluster": pa.array(clusters, pa.string()),
        "loss_sum": report.loss_sums,
        "num_supervised_tokens": report.supervised_tokens,
        "num_supervised_bytes": report.supervised_bytes,
        "num_tokens": np.asarray(table.num_tokens),
    }
    pq.write_table(pa.table(columns), path)


def plan_batches(lengths: np.ndarray, batch_tokens: int, *, packed: bool) -> list[tuple[int, ...]]:
    """All examples, longest first, in batches of at most `batch_tokens` positions.

    Args:
        lengths: tokens of each example, [N].
        batch_tokens: positions of one batch, padding included; an example that is longer is a batch of its own.
        packed: whether a batch's positions are the sum of its lengths, or its longest length times its examples.
    """
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    positions = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        # Longest first: the first example of a padded batch is its width.
        cost = int(lengths[index] if packed or not batch else lengths[batch[0]])
        if batch and positions + cost > batch_tokens:
            batches.append(tuple(batch))
            batch, positions, cost = [], 0, int(lengths[index])
        batch.append(index)
        positions += cost
    return [*batches, tuple(batch)] if batch else batches


def _sum_losses(model: nn.Module, table: TokenTable, settings: LossSettings) -> np.ndarray:
    """The summed loss of each example in nats, float64 [N], the same in every process.

    Raises:
        Unfinished: a signal came first, in one of the processes.
    """
    lengths = np.asarray(table.num_tokens)
    batches = plan_batches(lengths, settings.batch_tokens, packed=settings.packed)
    mine = batches[distributed.rank() :: distributed.num_processes()]
    sums = torch.zeros(len(lengths), dtype=torch.float64, device=settings.device)
    with inference(model, settings.precision), progress(settings.description, len(mine)) as bar:
        for indices in mine:
            if signals.asked_to_stop():
                break
            batch = collate(table, indices, packed=settings.packed, pad_token_id=settings.pad_token_id)
            _add_losses(model, batch.to(settings.device), sums)
            bar.advance()
    sums = torch.cat([sums, sums.new_tensor(signals.stop_flags())])
    if distributed.num_processes() > 1:
        process_group.exchange(lambda: torch.distributed.all_reduce(sums, async_op=True))
    losses, flags = np.split(sums.cpu().numpy(), [len(lengths)])
    number = signals.flagged(flags.tolist())
    if number is not None:
        raise signals.Unfinished(number)
    return losses


def _add_losses(model: nn.Module, batch: MicroBatch, sums: Tensor) -> None:
    """Add each example's loss to its entry of `sums`, float64 [N]; nothing waits for the device."""
    sums.index_add_(0, batch.rows, token_losses(model, **batch.inputs).to(torch.float64))


def _exp(loss: float) -> float:
    """The loss as a perplexity, infinite where a float can't hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
