"""Text to token ids by the `tokenizers` library."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tokenizers import Tokenizer


class LibraryEncoder:
    """A `TextEncoder` over a fast tokenizer.

    Args:
        backend: the tokenizer as JSON.
        splits_special: whether special tokens that stand in a text are taken apart as text.
    """

    def __init__(self, backend: str, *, splits_special: bool = False) -> None:
        self._tokenizer = Tokenizer.from_str(backend)
        # what the tokenizer's last call asked for stands in the JSON
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = splits_special

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 [T]."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


class SlowEncoder:
    """A `TextEncoder` over a tokenizer that is written in Python.

    Args:
        tokenizer: a transformers tokenizer.
        splits_special: whether special tokens that stand in a text are taken apart as text.
    """

    def __init__(self, tokenizer: Any, *, splits_special: bool) -> None:
        self._tokenizer = tokenizer
        self._options = {"split_special_tokens": True} if splits_special else {}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 [T]."""
        if not texts:
            return []
        found = self._tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False, **self._options
        )
        return [np.array(ids, np.int32) for ids in found["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


@contextmanager
def parallel_tokenizers() -> Iterator[None]:
    """Let tokenizers use all cores inside; afterwards not, so that a later fork is safe and quiet.

    A TOKENIZERS_PARALLELISM that the user set is left as it is.
    """
    if "TOKENIZERS_PARALLELISM" in os.environ:
        yield
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
