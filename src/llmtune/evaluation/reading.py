"""What a perplexity says in words, and what it doesn't say."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """A perplexity in words."""

    grade: str
    """Excellent, Good, Fair or Poor."""
    meaning: str
    """The grade in half a sentence."""


_READINGS = (
    (20.0, Reading("Excellent", "well adapted to this domain")),
    (50.0, Reading("Good", "solid in this domain")),
    (math.nextafter(100.0, math.inf), Reading("Fair", "some mismatch with this domain")),
    (math.inf, Reading("Poor", "more training or another approach is needed")),
)

CAVEAT = (
    "A guide only: it compares under one tokenizer and one mask alone, and easy text has a low one untrained; the fall "
    "from the base model's says what was learnt."
)


def read_perplexity(perplexity: float) -> Reading:
    """The reading of a perplexity: below 20 Excellent, below 50 Good, up to 100 Fair, above it Poor; NaN is Poor."""
    for bound, reading in _READINGS:
        if perplexity < bound:
            return reading
    return _READINGS[-1][1]
