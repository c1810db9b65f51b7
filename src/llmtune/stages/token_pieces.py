"""Tokens as text that a person reads: those together that make up one character, each with its spaces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder gives for bytes that aren't a whole character."""
_MOST = 12
"""Tokens that a character is made of at most: its bytes, and some more where it shares one with the next."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token, or several that only together are text."""

    text: str
    is_trained: bool
    num_tokens: int = 1


def pieces_of(tokenizer: Any, ids: Sequence[int], trained: Sequence[bool]) -> Iterator[Piece]:
    """The text of an example's tokens in their order.

    A character whose tokens aren't all trained on, or all not, is shown as its broken parts.

    Args:
        tokenizer: a transformers tokenizer.
        ids: the tokens.
        trained: of each, whether it is trained on.
    """
    special = set(tokenizer.all_special_ids)
    before: Sequence[int] = ()
    at = 0
    while at < len(ids):
        limit = at + 1
        if ids[at] not in special:
            while limit < min(len(ids), at + _MOST) and trained[limit] == trained[at] and ids[limit] not in special:
                limit += 1
        size, text = _first_whole(tokenizer, ids[at:limit], () if ids[at] in special else before)
        yield Piece(text, trained[at], size)
        before = ids[at : at + size]
        at += size


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, as it stands."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _first_whole(tokenizer: Any, ids: Sequence[int], before: Sequence[int]) -> tuple[int, str]:
    """The fewest of the first tokens that are whole characters together, and their text.

    Where all are broken, the fewest that stand apart from the rest: the sign for what is broken may be in the text.
    """
    texts = []
    for size in range(1, len(ids) + 1):
        texts.append(_text(tokenizer, ids[:size], before))
        if _BROKEN not in texts[-1]:
            return size, texts[-1]
    apart = (size for size in range(1, len(ids)) if texts[size - 1] + decoded(tokenizer, ids[size:]) == texts[-1])
    size = next(apart, 1)
    return size, texts[size - 1]


def _text(tokenizer: Any, ids: Sequence[int], before: Sequence[int]) -> str:
    """The text of tokens where they stand: behind others, for some decoders drop the space that begins a text."""
    behind = decoded(tokenizer, [*before, *ids])
    start = decoded(tokenizer, before)
    return behind[len(start) :] if before and behind.startswith(start) else decoded(tokenizer, ids)
