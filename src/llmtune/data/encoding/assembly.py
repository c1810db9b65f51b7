"""Segments' ids become examples, with numpy over a whole batch at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from llmtune.data.encoding.description import TokenizerDescription
from llmtune.data.encoding.engine import TextEncoder
from llmtune.data.encoding.example import IGNORED
from llmtune.data.encoding.layout import Draft, Layout
from llmtune.data.encoding.lengths import Tokens
from llmtune.data.encoding.segment_ids import SegmentIds

_LONGEST_TAIL = 16


class Drafted(NamedTuple):
    """An example before it is cut."""

    tokens: Tokens
    num_supervised: int
    """Supervised tokens that have one before them."""
    first_bytes: int
    """Bytes of its first token, where that is supervised: nothing predicts it, so they don't count."""


@dataclass(frozen=True)
class Batch:
    """The examples of several layouts, in their order; D examples of N tokens in all."""

    ids: np.ndarray
    """int32 [N]."""
    labels: np.ndarray
    """int32 [N]."""
    borders: list[int]
    """[D + 1], where each example starts and ends."""
    num_tokens: list[int]
    num_supervised: list[int]
    num_bytes: list[int]
    first_bytes: list[int]
    refusals: list[str | None]
    """Why an example has no tokens."""

    def __getitem__(self, number: int) -> Drafted:
        first, after = self.borders[number], self.borders[number + 1]
        tokens = Tokens(self.ids[first:after], self.labels[first:after], self.num_bytes[number])
        return Drafted(tokens, self.num_supervised[number], self.first_bytes[number])


@dataclass(slots=True)
class _Gathered:
    """Pieces of examples, end to end."""

    pieces: list[np.ndarray] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)
    tails: list[tuple[int, int]] = field(default_factory=list)
    """Pieces whose last tokens aren't learnt, and how many those are."""
    ends: list[int] = field(default_factory=list)
    """Number of pieces up to each example's end."""
    num_bytes: list[int] = field(default_factory=list)
    """Of the learnt text; in conversations with the spelling of special tokens."""
    is_chat: list[bool] = field(default_factory=list)
    refusals: list[str | None] = field(default_factory=list)

    def add(self, ids: np.ndarray, *, learnt: bool) -> None:
        self.pieces.append(ids)
        self.learnt.append(learnt)

    def finish(self, num_bytes: int, *, is_chat: bool, refusal: str | None = None) -> None:
        self.ends.append(len(self.pieces))
        self.num_bytes.append(num_bytes)
        self.is_chat.append(is_chat)
        self.refusals.append(refusal)


class Assembler:
    """Encodes layouts.

    Args:
        description: the tokenizer.
        encoder: turns text into ids.
    """

    def __init__(self, description: TokenizerDescription, encoder: TextEncoder) -> None:
        self._segment_ids = SegmentIds(description, encoder)
        self._decode = encoder.decode
        self._start = np.array(description.start_ids, np.int32)
        self._end = np.array([description.end_id], np.int32)
        self._end_id = description.end_id
        # the entry at the end is for every id beyond
        self._spelled_bytes = np.zeros(max(description.special_tokens) + 2, np.int64)
        for number, token in description.special_tokens.items():
            self._spelled_bytes[number] = len(token.encode())
        self._is_blank: dict[bytes, bool] = {}
        self._num_first_bytes: dict[int, int] = {}

    def __call__(self, layouts: Sequence[Layout]) -> Batch:
        """The examples of layouts."""
        drafts = [draft for layout in layouts for draft in layout.drafts]
        of_drafts = [layout for layout in layouts for _ in layout.drafts]
        gathered = _Gathered()
        for draft, layout, parts in zip(drafts, of_drafts, self._segment_ids(drafts), strict=True):
            if isinstance(parts, str):
                gathered.finish(0, is_chat=layout.is_chat, refusal=parts)
            elif layout.is_chat:
                self._add_chat(gathered, draft, parts, layout.closing_ids)
            else:
                self._add_plain(gathered, draft, parts)
        return self._batch(gathered)

    def _add_plain(self, gathered: _Gathered, draft: Draft, parts: Sequence[np.ndarray]) -> None:
        num_start = len(self._start)
        if num_start and not (parts and np.array_equal(parts[0][:num_start], self._start)):
            gathered.add(self._start, learnt=False)
        num_bytes = 0
        for (text, learnt, _), ids in zip(draft, parts, strict=True):
            gathered.add(ids, learnt=learnt)
            num_bytes += _num_bytes(text) if learnt else 0
        if not (parts and draft[-1].learnt and len(parts[-1]) and parts[-1][-1] == self._end_id):
            gathered.add(self._end, learnt=True)
        gathered.finish(num_bytes, is_chat=False)

    def _add_chat(
        self, gathered: _Gathered, draft: Draft, parts: Sequence[np.ndarray], closing_ids: frozenset[int]
    ) -> None:
        num_bytes = 0
        is_open = False
        last = len(draft) - 1
        for number, ((text, learnt, is_typed), ids) in enumerate(zip(draft, parts, strict=True)):
            gathered.add(ids, learnt=learnt)
            is_open = False
            if not learnt:
                continue
            if number < last and draft[number + 1].learnt:
                num_bytes += _num_bytes(text)
                continue
            num_tail = None if is_typed else self._num_tail(ids, closing_ids)
            is_open = num_tail is None
            num_bytes += _num_bytes(text if is_open else text.rstrip())
            if num_tail:
                gathered.tails.append((len(gathered.pieces) - 1, num_tail))
        if is_open:
            # the template never ends a turn, so that the model would never learn to
            gathered.add(self._end, learnt=True)
            num_bytes += int(self._spelled_bytes[self._end_id])
        gathered.finish(num_bytes, is_chat=True)

    def _num_tail(self, ids: np.ndarray, closing_ids: frozenset[int]) -> int | None:
        """Tokens after a turn's end token, white space that a template adds; None where no end token is."""
        for number in range(min(len(ids), _LONGEST_TAIL)):
            if int(ids[-1 - number]) in closing_ids:
                return number if number == 0 or self._blank(ids[-number:]) else None
        return None

    def _blank(self, ids: np.ndarray) -> bool:
        key = ids.tobytes()
        if key not in self._is_blank:
            self._is_blank[key] = not self._decode(ids.tolist()).strip()
        return self._is_blank[key]

    def _batch(self, gathered: _Gathered) -> Batch:
        pieces = gathered.pieces
        ids = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        piece_borders = np.zeros(len(pieces) + 1, np.int64)
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        np.cumsum(lengths, out=piece_borders[1:])
        learnt = np.repeat(np.array(gathered.learnt, bool), lengths)
        for piece, num_tail in gathered.tails:
            end = piece_borders[piece + 1]
            learnt[end - num_tail : end] = False
        borders = piece_borders[[0, *gathered.ends]]
        starts, ends = borders[:-1], borders[1:]
        starts_learnt = np.zeros(len(starts), bool)
        starts_learnt[ends > starts] = learnt[starts[ends > starts]]
        first_bytes = [0] * len(starts)
        for number in np.flatnonzero(starts_learnt).tolist():
            first_bytes[number] = self._first_bytes(int(ids[starts[number]]))
        num_bytes = np.array(gathered.num_bytes, np.int64) - np.array(first_bytes, np.int64)
        if any(gathered.is_chat):
            num_bytes -= np.array(gathered.is_chat) * _sums(self._spelled(ids, learnt), starts, ends)
        return Batch(
            ids=ids,
            labels=np.where(learnt, ids, np.int32(IGNORED)),
            borders=borders.tolist(),
            num_tokens=(ends - starts).tolist(),
            num_supervised=(_sums(learnt, starts, ends) - starts_learnt).tolist(),
            num_bytes=np.maximum(num_bytes, 0).tolist(),
            first_bytes=first_bytes,
            refusals=gathered.refusals,
        )

    def _spelled(self, ids: np.ndarray, learnt: np.ndarray) -> np.ndarray:
        """Bytes of each learnt special token's spelling, which isn't text; 0 for other tokens."""
        return self._spelled_bytes[np.minimum(ids, len(self._spelled_bytes) - 1)] * learnt

    def _first_bytes(self, token: int) -> int:
        if token not in self._num_first_bytes:
            # a character that it only starts counts with the token that completes it
            whole = self._decode([token]).rstrip("\N{REPLACEMENT CHARACTER}")
            self._num_first_bytes[token] = len(whole.encode())
        return self._num_first_bytes[token]


def _sums(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums[ends] - sums[starts]


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
