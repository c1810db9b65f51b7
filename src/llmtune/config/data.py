"""`data`: the examples, how they are split and how they become tokens."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, Fraction, NonNegativeInt, PositiveInt, Text


@dataclass(config=STRICT, frozen=True, kw_only=True)
class SplitAndLength:
    """What every source of examples has: lengths and splits."""

    max_seq_len: PositiveInt = 512
    """Longest example in tokens; what is longer is handled as `overlong` says."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What happens to an example longer than `max_seq_len`: its end is cut, or it is left out. Both are counted."""
    validation_fraction: Fraction = 0.05
    """Share of the examples for validation: early stopping and the best checkpoint. By content, never by order."""
    test_fraction: Fraction = 0.1
    """Share of the examples for the test set, which only `evaluate` reads. Not used where `eval_path` is given."""
    split_seed: NonNegativeInt = 0
    """Decides, with an example's content, into which split it falls. Independent of `seed`."""
    num_examples: PositiveInt | None = None
    """Training examples at most; smaller sets are part of larger ones. null takes all."""
    num_validation_examples: PositiveInt | None = None
    """Validation examples at most; null takes all."""
    num_test_examples: PositiveInt | None = None
    """Test examples at most; null takes all. Not used where `eval_path` is given: that file is measured whole."""
    eval_path: Text | None = None
    """File of examples that is the test set; null takes `test_fraction` of the examples instead."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class FilesConfig(SplitAndLength):
    """Examples in a file of the user's: JSONL, JSON, TXT, CSV or Parquet."""

    source: Literal["files"] = "files"
    """Where the examples come from."""
    path: Text | None = None
    """The file. Rows have `text` or `content`; `prompt` and `completion`; or `messages`."""
    format: Literal["auto", "jsonl", "json", "txt", "csv", "parquet"] = "auto"
    """The file's format; `auto` goes by the name's ending."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EmbeddedConfig(SplitAndLength):
    """Python functions of packages that are installed with llmtune."""

    source: Literal["embedded"] = "embedded"
    """Where the examples come from."""
    form: Literal["completion", "text"] = "completion"
    """`completion`: the prompt is signature and docstring, the completion is the body; `text`: whole functions."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class HubDataConfig(SplitAndLength):
    """A data set on the Hugging Face Hub."""

    source: Literal["hub"] = "hub"
    """Where the examples come from."""
    id: Text | None = None
    """Id of the data set, such as `tatsu-lab/alpaca`."""
    subset: Text | None = None
    """Named configuration of the data set; null takes its default."""
    split: Text = "train"
    """Split of the data set to read."""
    revision: Text | None = None
    """Branch, tag or commit on the Hub; null takes the newest. Recorded as the commit that it resolved to."""


DataConfig = Annotated[FilesConfig | EmbeddedConfig | HubDataConfig, Field(discriminator="source")]
