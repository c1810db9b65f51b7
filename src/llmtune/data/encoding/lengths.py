"""Examples that are too long: cut, or split into windows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llmtune.data.encoding.example import IGNORED, TokenizedExample

_LONGEST_CHARACTER = 4


class Tokens(NamedTuple):
    """An example before it is cut."""

    ids: np.ndarray
    """int32 [T]."""
    labels: np.ndarray
    """int32 [T]."""
    num_bytes: int
    """Supervised bytes, as `TokenizedExample` counts them."""


class Cutter:
    """Cuts examples.

    The text of a window is counted up to its last whole character: one that a border runs through counts in the window
    that completes it, so that the windows' bytes add up to the example's.

    Args:
        max_seq_len: tokens of an example at most.
        decode: the text of ids.
        special_ids: ids that aren't text.
    """

    def __init__(self, max_seq_len: int, decode: Callable[[Sequence[int]], str], special_ids: Sequence[int]) -> None:
        self._max_seq_len = max_seq_len
        self._decode = decode
        self._special_ids = np.array(special_ids, np.int32)

    def truncated(self, tokens: Tokens, first_bytes: int) -> TokenizedExample:
        """The start of an example.

        Args:
            tokens: the example.
            first_bytes: bytes of its first token that don't count.
        """
        ids, labels = tokens.ids[: self._max_seq_len], tokens.labels[: self._max_seq_len]
        num_bytes, _ = self._count(self._text_ids(labels))
        return TokenizedExample(ids, labels, max(0, num_bytes - first_bytes))

    def windows(self, tokens: Tokens, first_bytes: int) -> tuple[list[TokenizedExample], int]:
        """An example in windows, of those that hold something to learn, and how many there are in all.

        Each window but the first starts with the last token of the one before, which it only gives, so that every
        supervised token is learnt in exactly one window.

        Args:
            tokens: the example.
            first_bytes: bytes of its first token that don't count.
        """
        starts = range(0, len(tokens.ids) - 1, self._max_seq_len - 1) if self._max_seq_len > 1 else range(0)
        found: list[TokenizedExample] = []
        pending = np.zeros(0, np.int32)
        for start in starts:
            ids = tokens.ids[start : start + self._max_seq_len]
            labels = tokens.labels[start : start + self._max_seq_len]
            if start:
                labels = labels.copy()
                labels[0] = IGNORED
            if np.all(labels[1:] == IGNORED):
                continue
            num_bytes, pending = self._count(np.concatenate([pending, self._text_ids(labels)]))
            found.append(TokenizedExample(ids, labels, max(0, num_bytes - (0 if start else first_bytes))))
        if found:
            last = found.pop()
            rest = tokens.num_bytes - sum(window.num_supervised_bytes for window in found)
            found.append(TokenizedExample(last.input_ids, last.labels, max(0, rest)))
        return found, max(1, len(starts))

    def _text_ids(self, labels: np.ndarray) -> np.ndarray:
        learnt = labels[labels != IGNORED]
        return learnt[~np.isin(learnt, self._special_ids)]

    def _count(self, ids: np.ndarray) -> tuple[int, np.ndarray]:
        """Bytes of the whole characters of a text, and the ids at its end that don't make one yet."""
        text = self._decode(ids.tolist())
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            return len(text.encode()), ids[:0]
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
        for number in range(1, min(_LONGEST_CHARACTER, len(ids) + 1)):
            if self._decode(ids[:-number].tolist()) == whole:
                return len(whole.encode()), ids[-number:]
        return len(whole.encode()), ids[:0]
