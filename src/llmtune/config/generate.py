"""`generate`: text from a model."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, NonNegativeFloat, NonNegativeInt, PositiveInt, Text


@dataclass(config=STRICT, frozen=True, kw_only=True)
class GenerateConfig:
    """How text is sampled."""

    prompt: Text | None = None
    """The text to go on from."""
    max_new_tokens: PositiveInt = 100
    """Tokens to write, at most."""
    temperature: NonNegativeFloat = 0.7
    """Above 0: higher is more varied; 0 takes the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Samples among the likeliest tokens that hold this share of the probability; 1 turns it off."""
    top_k: NonNegativeInt = 0
    """Samples among this many likeliest tokens; 0 turns it off."""
    num_samples: PositiveInt = 1
    """Texts to write."""
