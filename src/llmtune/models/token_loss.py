"""The one forward pass that training and evaluation share: a loss for each supervised token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

IGNORED = -100


@dataclass(frozen=True)
class TokenLosses:
    """Losses of a micro-batch's supervised tokens, in row order."""

    losses: torch.Tensor
    """[N] float32, nats; differentiable where the model is."""
    positions: torch.Tensor
    """[N] int64: flat index b × T + t of the token that was predicted."""


def token_losses(
    model: nn.Module,
    *,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    lengths: Sequence[int],
) -> TokenLosses:
    """Cross-entropy of each supervised token given those before it in the same example.

    Position t - 1 predicts the label at t; an example's first token is predicted by nothing, whatever its label.
    Only positions that predict a supervised token are projected to the vocabulary.

    Args:
        model: a causal language model, perhaps wrapped.
        input_ids: [B, T].
        labels: [B, T], -100 where a token isn't supervised.
        position_ids: [B, T], from 0 in each example.
        attention_mask: [B, T], false at padding on the right; None for a packed row.
        lengths: tokens of each example; packed: B = 1 and they add up to T; padded: one a row.

    Returns:
        The losses; empty where nothing is supervised.
    """
    predicted = supervised_positions(labels, lengths, packed=attention_mask is None)
    predictors = predicted - 1
    if predicted.numel() == 0:
        return TokenLosses(torch.zeros(0, dtype=torch.float32, device=input_ids.device), predicted)
    num_columns = input_ids.shape[1]
    kept, column_of = torch.unique(predictors % num_columns, return_inverse=True)
    borders = _borders(lengths, input_ids.device) if attention_mask is None else {}
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
        logits_to_keep=kept,
        **borders,
    ).logits
    if logits.shape[1] != kept.numel():
        logits = logits[:, kept]  # a model without logits_to_keep projects every position
    chosen = logits[predictors // num_columns, column_of]
    losses = F.cross_entropy(chosen.float(), labels.reshape(-1)[predicted], reduction="none")
    return TokenLosses(losses, predicted)


def supervised_positions(labels: torch.Tensor, lengths: Sequence[int], *, packed: bool) -> torch.Tensor:
    """Flat indices [N] of the tokens that are predicted and supervised, in order.

    Args:
        labels: [B, T].
        lengths: tokens of each example.
        packed: whether the examples stand end to end in one row, instead of one a row.
    """
    supervised = labels != IGNORED
    supervised[:, 0] = False
    if packed:
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        supervised[0, starts.to(labels.device)] = False
    return supervised.reshape(-1).nonzero().squeeze(1)


def _borders(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """The forward arguments by which a packed row's examples are kept apart, named as flash attention's."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    longest = max(lengths)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
