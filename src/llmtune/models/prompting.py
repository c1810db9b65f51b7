"""The rows that a model writes on from: padded on the left, ended by the right tokens."""

from collections.abc import Sequence
from typing import cast

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase


def stop_token_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a text: the tokenizer's end token first, then those that the model's own settings name."""
    own = config.eos_token_id if config is not None else None
    listed = own if isinstance(own, list) else [own]
    wanted = [tokenizer.eos_token_id, *listed]
    return list(dict.fromkeys(cast(int, token) for token in wanted if token is not None))


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills padded rows; the end token's where the tokenizer has none for it."""
    pad = tokenizer.pad_token_id
    return cast(int, tokenizer.eos_token_id if pad is None else pad)


def left_padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token rows that all end at the right edge: ids int64 [B, T] and their mask int64 [B, T], 0 on padding."""
    width = max(map(len, rows))
    ids = [[fill] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
