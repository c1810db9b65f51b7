"""Examples become the tensors of one micro-batch, packed end to end or padded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from llmtune.data.encoding.example import IGNORED
from llmtune.data.token_table import TokenTable


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass; B rows of T positions. Packed: B is 1 and T the sum of the lengths."""

    input_ids: torch.Tensor
    """int64 [B, T]."""
    position_ids: torch.Tensor
    """int64 [B, T]; starts again at 0 with each example."""
    attention_mask: torch.Tensor | None
    """bool [B, T], False on padding; None when packed."""
    predicted: torch.Tensor
    """int64 [N]: flat index b × T + t of each token that is learnt, in order; never an example's first, which nothing
    in it predicts."""
    targets: torch.Tensor
    """int64 [N]: those tokens."""
    rows: torch.Tensor
    """int64 [N]: the table's row that each of them belongs to."""
    lengths: tuple[int, ...]
    """Tokens of each example: end to end when packed, one a row and padded on the right otherwise."""
    indices: tuple[int, ...]
    """Rows of the table, in the same order."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What `token_losses` takes beside the model."""
        names = ("input_ids", "position_ids", "attention_mask", "lengths")
        return {**{name: getattr(self, name) for name in names}, "supervised": (self.predicted, self.targets)}

    def to(self, device: torch.device | str) -> "MicroBatch":
        """The same micro-batch on another device; the copy isn't waited for."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


def collate(table: TokenTable, indices: Sequence[int], *, packed: bool, pad_token_id: int) -> MicroBatch:
    """The micro-batch of some examples. What is learnt where is worked out here, so that no device is asked later.

    Args:
        table: where the examples stand.
        indices: their rows; at least one.
        packed: lay them end to end in one row instead of padding each to the longest.
        pad_token_id: fills padding; it may equal any other token, since padding is told apart by position.
    """
    ids = [table.input_ids(index) for index in indices]
    labels = [_without_first(table.labels(index)) for index in indices]
    positions = [np.arange(len(tokens)) for tokens in ids]
    lengths = tuple(len(tokens) for tokens in ids)
    mask = None
    if packed:
        rows = [np.concatenate(parts)[None] for parts in (ids, labels, positions)]
    else:
        rows = [_padded(ids, pad_token_id), _padded(labels, IGNORED), _padded(positions, 0)]
        mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    input_ids, all_labels, position_ids = (row.astype(np.int64) for row in rows)
    predicted, targets = supervised_tokens(all_labels)
    counts = [np.count_nonzero(row != IGNORED) for row in labels]
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=mask,
        predicted=predicted,
        targets=targets,
        rows=torch.from_numpy(np.repeat(np.asarray(indices, dtype=np.int64), counts)),
        lengths=lengths,
        indices=tuple(indices),
    )


def supervised_tokens(labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the learnt tokens stand and which they are, int64 [N] each, in order.

    Args:
        labels: int64 [B, T], not shifted; -100 where nothing is learnt, each example's first token included.
    """
    flat = labels.reshape(-1)
    predicted = np.flatnonzero(flat != IGNORED)
    return torch.from_numpy(predicted), torch.from_numpy(flat[predicted])


def _without_first(labels: np.ndarray) -> np.ndarray:
    """Labels whose first is -100: packed, the token before it belongs to another example."""
    masked = labels.copy()
    masked[:1] = IGNORED
    return masked


def _padded(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """[B, longest], filled up on the right."""
    padded = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded
