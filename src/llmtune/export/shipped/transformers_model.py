"""A model of transformers that goes one token after another, and its text."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils import logging

logging.disable_progress_bar()


class TransformersText:
    """Text to token ids and back.

    Args:
        tokenizer: of transformers.
        end_token_ids: the tokens that end an answer.
        max_positions: the longest text in tokens; None for no limit.
    """

    def __init__(self, tokenizer: Any, end_token_ids: Sequence[int], max_positions: int | None) -> None:
        self._tokenizer = tokenizer
        self.end_token_ids = list(end_token_ids)
        self.max_positions = max_positions

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; `special` adds what the tokenizer puts around one."""
        return self._tokenizer(text, add_special_tokens=special)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def render(self, messages: list[dict[str, str]]) -> str:
        """A conversation as the model reads it, up to where its answer begins."""
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


class CachedModel:
    """A model of transformers one token after another, earlier keys and values kept.

    Args:
        model: causal language model in evaluation mode.
        text: its tokenizer.
    """

    def __init__(self, model: Any, text: TransformersText) -> None:
        self.model = model
        self.text = text
        self._mask: torch.Tensor | None = None
        self._past: Any = None

    @torch.inference_mode()
    def start(self, input_ids: Any, attention_mask: Any) -> torch.Tensor:
        """Begin new texts, rows padded on the left: logits [B, T, V]."""
        self._past = None
        self._mask = torch.tensor(attention_mask, device=self.model.device)
        return self._forward(torch.tensor(input_ids, device=self.model.device))

    @torch.inference_mode()
    def step(self, tokens: Any) -> torch.Tensor:
        """One token further in each row: logits [B, V]."""
        assert self._mask is not None, "start comes first"
        new = torch.tensor(tokens, device=self.model.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(new)], dim=1)
        return self._forward(new)[:, -1]

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert self._mask is not None
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._past,
            use_cache=True,
        )
        self._past = output.past_key_values
        return output.logits.float().cpu()


def text_of(model: Any, tokenizer: Any) -> TransformersText:
    """The text of a model as its own files say."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return TransformersText(tokenizer, ends, getattr(model.config, "max_position_embeddings", None))


def best_device(device: str | None) -> str:
    """The device that was named, else a GPU where there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
