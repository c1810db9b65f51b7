"""Text to token ids."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class TextEncoder(Protocol):
    """Turns texts into ids, without special tokens at start or end; what stands in the text as a special token is one.

    Picklable, or made anew in each process from a picklable description.
    """

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 [T] each, exactly those of the model's own tokenizer."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included, spaces as they are."""
        ...
