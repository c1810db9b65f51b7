"""`compare`: what counts as good enough, and what time costs."""

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, Fraction, PositiveFloat


@dataclass(config=STRICT, frozen=True, kw_only=True)
class CompareConfig:
    """How a sweep's runs, or any others, are compared."""

    margin: Fraction = 0.05
    """Share of full fine-tuning's gain over the base model that another method may miss and still be good enough."""
    price_per_hour: PositiveFloat | None = None
    """What an hour of the machine costs, in any currency; null leaves the cost of training out."""
