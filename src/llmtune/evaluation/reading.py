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
    (20.0, Reading("Excellent", "the model is at home in this domain")),
    (50.0, Reading("Good", "the model does solid work in this domain")),
    (math.nextafter(100.0, math.inf), Reading("Fair", "the model is partly a stranger to this domain")),
    (math.inf, Reading("Poor", "the model needs more training, or another approach")),
)

CAVEAT = (
    "Perplexities compare only under one tokenizer and one mask of supervised tokens, and easy text has a low one "
    "whatever the model learnt: read the fall from the base model's, not the number alone."
)


def read_perplexity(perplexity: float) -> Reading:
    """The reading of a perplexity: below 20 Excellent, below 50 Good, up to 100 Fair, above it Poor; NaN is Poor."""
    for bound, reading in _READINGS:
        if perplexity < bound:
            return reading
    return _READINGS[-1][1]
