"""One example's tokens."""

from dataclasses import dataclass

import numpy as np

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

    @property
    def num_supervised_tokens(self) -> int:
        """Tokens that are supervised and have one before them."""
        return int(np.count_nonzero(self.labels[1:] != IGNORED))
