"""Ids of segments, each as it would be in the middle of a text."""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from llmtune.data.encoding.description import TokenizerDescription
from llmtune.data.encoding.encoders import make_encoder
from llmtune.data.encoding.engine import TextEncoder
from llmtune.data.encoding.layout import Draft, Segment
from llmtune.data.shaping.values import is_unicode

NOT_UNICODE = "half a character (a lone surrogate such as \\ud83d), which no tokenizer takes; write it whole"
NO_PARTING = (
    "the model's tokenizer joins a line end with the text after it, so prompts can't be parted from completions "
    "exactly; give the examples as `text`, or choose another model"
)


class SegmentIds:
    """Encodes segments, many in one call so that the tokenizer can use all cores.

    Args:
        description: the tokenizer.
        encoder: turns text into ids.
    """

    def __init__(self, description: TokenizerDescription, encoder: TextEncoder) -> None:
        self._description = description
        self._encoder = encoder

    def __call__(self, drafts: Sequence[Draft]) -> list[list[np.ndarray] | str]:
        """Ids of each segment of each draft; of a draft that can't be encoded, why not."""
        segments = [segment for draft in drafts for segment in draft]
        is_later = [number > 0 for draft in drafts for number in range(len(draft))]
        found: list[np.ndarray | str] = [""] * len(segments)
        typed = [number for number, segment in enumerate(segments) if segment.is_typed]
        if not typed and not self._description.lead_ins:
            found = self._encode(self._encoder, [segment.text for segment in segments])
        else:
            plain = [number for number, segment in enumerate(segments) if not segment.is_typed]
            self._fill(self._encoder, segments, is_later, plain, found)
            if typed:
                self._fill(self._typed_encoder, segments, is_later, typed, found)
        return self._by_draft(drafts, found)

    @cached_property
    def _typed_encoder(self) -> TextEncoder:
        return make_encoder(self._description, splits_special=True)

    def _fill(
        self,
        encoder: TextEncoder,
        segments: Sequence[Segment],
        is_later: Sequence[bool],
        numbers: Sequence[int],
        found: list[np.ndarray | str],
    ) -> None:
        """Encode some of the segments, later ones behind a lead-in that is cut off again."""
        leads = self._description.lead_ins
        first = [number for number in numbers if not (leads and is_later[number])]
        for number, ids in zip(first, self._encode(encoder, [segments[number].text for number in first]), strict=True):
            found[number] = ids
        left = [number for number in numbers if leads and is_later[number]]
        for lead in leads:
            # a typed segment's encoder takes an end token apart, so the lead-in is what it makes of it
            (lead_ids,) = encoder.encode([lead])
            behind = self._encode(encoder, [lead + segments[number].text for number in left])
            for number, ids in zip(left, behind, strict=True):
                parts = isinstance(ids, np.ndarray) and np.array_equal(ids[: len(lead_ids)], lead_ids)
                found[number] = ids[len(lead_ids) :] if parts else (ids if isinstance(ids, str) else NO_PARTING)
            left = [number for number in left if found[number] is NO_PARTING]

    @staticmethod
    def _encode(encoder: TextEncoder, texts: Sequence[str]) -> list[np.ndarray | str]:
        try:
            return list(encoder.encode(texts))
        except (TypeError, UnicodeError):
            broken = [not is_unicode(text) for text in texts]
            if not any(broken):
                raise
        ids = encoder.encode(["" if is_broken else text for text, is_broken in zip(texts, broken, strict=True)])
        return [NOT_UNICODE if is_broken else found for found, is_broken in zip(ids, broken, strict=True)]

    @staticmethod
    def _by_draft(drafts: Sequence[Draft], found: list[np.ndarray | str]) -> list[list[np.ndarray] | str]:
        ends = list(accumulate(map(len, drafts)))
        answers: list[list[Any] | str] = [
            found[end - len(draft) : end] for draft, end in zip(drafts, ends, strict=True)
        ]
        if str in set(map(type, found)):
            answers = [next((part for part in parts if isinstance(part, str)), parts) for parts in answers]
        return answers
