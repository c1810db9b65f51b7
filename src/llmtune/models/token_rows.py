"""Rows of single tokens that train beside frozen embeddings and a frozen output head: PEFT's trainable tokens."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import nn


@dataclass(frozen=True)
class TrainedRows:
    """Rows that stand in the place of some of a matrix's own."""

    ids: torch.Tensor
    """[n] int64: which rows."""
    rows: torch.Tensor
    """[n, D]."""


class TokenRows(TrainableTokensLayer):
    """PEFT's layer, with the same values, without a copy of the whole matrix in each forward pass and a gradient of it.

    PEFT puts the rows into a copy [V, D] of the frozen matrix each time; with a tied head it takes the gradient of the
    whole copy too. Here the rows' own embeddings and logits take the place of the frozen ones.
    """

    def forward_adapters(self, x: torch.Tensor, active_adapters: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Embeddings [..., D] of ids, or logits [..., V] of hidden states."""
        trained = trained_rows(self)
        if trained is None:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        base: Any = self.base_layer
        frozen, rows = base(x), trained.rows.to(base.weight.dtype)
        if isinstance(base, nn.Linear):
            logits = F.linear(x, rows)
            return frozen.index_copy(-1, trained.ids, logits.to(frozen.dtype))
        matches = x[..., None] == trained.ids
        rows = F.embedding(matches.to(torch.int8).argmax(-1), rows)
        scale = self._get_embed_scale()
        rows = rows if scale is None else rows * scale.to(rows.dtype)
        return torch.where(matches.any(-1, keepdim=True), rows.to(frozen.dtype), frozen)


def use_token_rows(model: nn.Module) -> None:
    """Give each of PEFT's layers of trained tokens in a model the forward pass of `TokenRows`; nothing else changes."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = TokenRows  # PEFT makes these layers itself, and knows them by their class


def trained_rows(layer: nn.Module) -> TrainedRows | None:
    """The rows that are in force in a layer of trained tokens; None where they are merged or switched off."""
    assert isinstance(layer, TrainableTokensLayer)
    active = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1 or active[0] not in layer.token_indices:
        return None
    rows = layer.trainable_tokens_delta[active[0]]
    return TrainedRows(torch.tensor(layer.token_indices[active[0]], device=rows.device), rows)


def unwrapped(module: nn.Module) -> tuple[nn.Module, TrainedRows | None]:
    """An embedding or head as the base model has it, and the rows that train in the place of some of its own."""
    if not isinstance(module, TrainableTokensWrapper):
        return module, None
    return module.token_adapter.get_base_layer(), trained_rows(module.token_adapter)
