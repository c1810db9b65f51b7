"""Records become token ids and labels."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmtune.data.chat import Segment, conversation_segments, require_chat_template
from llmtune.data.records import Problems, Record
from llmtune.errors import DataError

IGNORED = -100
"""Label of a token that isn't supervised."""


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One example's tokens."""

    input_ids: np.ndarray
    """int32 [T]."""
    labels: np.ndarray
    """int32 [T], the id itself where the token is supervised, -100 elsewhere."""
    num_supervised_bytes: int
    """UTF-8 bytes of the text of all supervised tokens but the first of the example, which nothing predicts."""
    truncated: bool
    """Whether the end was cut."""

    @property
    def num_supervised_tokens(self) -> int:
        """Tokens that are supervised and have one before them."""
        return int(np.count_nonzero(self.labels[1:] != IGNORED))


class ExampleTokenizer:
    """Turns records into tokens.

    Text is supervised as a whole, of prompt and completion only the completion; both end with the end token, which is
    supervised, and start with the token that the tokenizer itself puts at the start, if it does. Conversations are as
    the chat template renders them and the assistant's turns are supervised, their end-of-turn token included. A
    segment is tokenised by itself, so that no token reaches over the border between what is given and what is learnt.

    Args:
        tokenizer: a transformers tokenizer.
        max_seq_len: tokens after which an example is cut.

    Raises:
        DataError: the tokenizer has no end token.
    """

    def __init__(self, tokenizer: Any, max_seq_len: int) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("the model's tokenizer has no end token (eos_token), so examples can't be ended; set one")
        self._tokenizer = tokenizer
        self._max_seq_len = max_seq_len
        self._end = int(tokenizer.eos_token_id)
        self._start = _start_tokens(tokenizer)
        self._special = set(tokenizer.all_special_ids)
        self._lead = _lead_in(tokenizer)
        self._lead_ids = tokenizer(self._lead, add_special_tokens=False)["input_ids"] if self._lead else []
        self._num_first_bytes: dict[int, int] = {}

    def __call__(self, records: Sequence[Record]) -> list[TokenizedExample]:
        """Tokens of each record, in their order.

        Raises:
            DataError: conversations, but no chat template; or conversations that the template can't render.
        """
        if any(record.messages is not None for record in records):
            require_chat_template(self._tokenizer)
        problems = Problems()
        segments = [self._segments(record, problems) for record in records]
        problems.raise_if_any()
        tokens = iter(self._tokenize_all(segments))
        return [
            self._example(record, parts, [next(tokens) for _ in parts])
            for record, parts in zip(records, segments, strict=True)
        ]

    def _segments(self, record: Record, problems: Problems) -> list[Segment]:
        if record.messages is not None:
            return conversation_segments(record, self._tokenizer, problems)
        if record.text is not None:
            return [(record.text, True)]
        parts = [(record.prompt or "", False), (record.completion or "", True)]
        return [part for part in parts if part[0]]

    def _tokenize_all(self, segments: Sequence[Sequence[Segment]]) -> list[list[int]]:
        """Ids of each segment of each example, in one call so that the tokenizer can use all cores."""
        texts = [
            text if number == 0 else self._lead + text for parts in segments for number, (text, _) in enumerate(parts)
        ]
        if not texts:
            return []
        ids = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        if not self._lead:
            return ids
        later = [number > 0 for parts in segments for number in range(len(parts))]
        return [self._without_lead(found) if cut else found for found, cut in zip(ids, later, strict=True)]

    def _without_lead(self, ids: list[int]) -> list[int]:
        if ids[: len(self._lead_ids)] != self._lead_ids:
            raise DataError(
                "the model's tokenizer joins a line end with the text after it, so prompts can't be parted from "
                "completions exactly; give the examples as `text`, or choose another model"
            )
        return ids[len(self._lead_ids) :]

    def _example(self, record: Record, parts: Sequence[Segment], tokens: Sequence[list[int]]) -> TokenizedExample:
        ids: list[int] = []
        supervised: list[bool] = []
        for (_, learnt), found in zip(parts, tokens, strict=True):
            num_learnt = self._num_without_tail(found) if learnt and record.messages is not None else len(found)
            ids += found
            supervised += [learnt] * num_learnt + [False] * (len(found) - num_learnt)
        if record.messages is None:
            if self._start and ids[: len(self._start)] != self._start:
                ids, supervised = self._start + ids, [False] * len(self._start) + supervised
            if not ids or ids[-1] != self._end or not supervised[-1]:
                ids, supervised = [*ids, self._end], [*supervised, True]
        truncated = len(ids) > self._max_seq_len
        input_ids = np.array(ids[: self._max_seq_len], dtype=np.int32)
        learnt_mask = np.array(supervised[: self._max_seq_len], dtype=bool)
        labels = np.where(learnt_mask, input_ids, IGNORED).astype(np.int32)
        num_bytes = self._num_bytes(record, input_ids, learnt_mask, whole=not truncated)
        return TokenizedExample(input_ids, labels, num_bytes, truncated)

    def _num_without_tail(self, ids: list[int]) -> int:
        """Tokens of an assistant's turn up to its end token; white space that a template adds after it is no answer."""
        for number in range(len(ids), 0, -1):
            if ids[number - 1] in self._special:
                return number if not self._decode(ids[number:]).strip() else len(ids)
        return len(ids)

    def _num_bytes(self, record: Record, ids: np.ndarray, learnt: np.ndarray, *, whole: bool) -> int:
        text = record.text if record.text is not None else record.completion
        if text is None or not whole:
            kept = ids[learnt]
            text = self._decode([int(token) for token in kept if int(token) not in self._special])
            text = text if whole else text.rstrip("\N{REPLACEMENT CHARACTER}")
        return max(0, len(text.encode()) - (self._first_bytes(int(ids[0])) if learnt[0] else 0))

    def _first_bytes(self, token: int) -> int:
        if token not in self._num_first_bytes:
            self._num_first_bytes[token] = len(self._decode([token]).encode())
        return self._num_first_bytes[token]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)


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


def _start_tokens(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts before a text by itself, such as a start token; often none."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for number in range(len(full) - len(bare) + 1):
        if full[number : number + len(bare)] == bare:
            return full[:number]
    return []


def _lead_in(tokenizer: Any) -> str:
    """Text to put before a later segment, and to cut off again, where the tokenizer puts a space before any text."""
    first = tokenizer("a", add_special_tokens=False)["input_ids"]
    return "\n" if tokenizer.convert_ids_to_tokens(first)[0].startswith(("\N{LOWER ONE EIGHTH BLOCK}", "Ġ")) else ""
