"""`evaluate`: what is measured on the test set."""

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, NonNegativeInt, PositiveInt, Text


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
    num_general_examples: NonNegativeInt = 24
    """Pieces of general text, of `data.max_seq_len` and 512 tokens at most, on which both models are measured too: what
    was forgotten. 0 turns it off."""
    general_path: Text | None = None
    """File of general text, read as `data.eval_path` is; null takes prose that is installed with llmtune: what the
    packages that it needs say of themselves."""
