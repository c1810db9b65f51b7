"""`evaluate`: what is measured on the test set."""

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, NonNegativeInt, PositiveInt


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EvaluateConfig:
    """Loss, perplexity and samples, of the base model and of the tuned one."""

    base: bool = True
    """Whether the base model is measured too, on the same examples."""
    batch_tokens: PositiveInt = 2048
    """Tokens in one forward pass; memory grows with it."""
    num_samples: NonNegativeInt = 3
    """Test examples to which both models write an answer; 0 turns it off."""
    sample_max_new_tokens: PositiveInt = 64
    """Length of such an answer in tokens, at most."""
