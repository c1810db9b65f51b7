"""`data`: the examples, how they are cleaned and split, and how they become tokens."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Text

Threshold = Annotated[float, Field(gt=0, le=1)]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class RowConfig:
    """How the rows of a source are read."""

    shape: Literal["auto", "text", "completion", "instruction", "messages"] = "auto"
    """What a row is: `text`; `prompt` and `completion`; `instruction`, `input` and `output`; `messages`. `auto` goes by
    its columns, and refuses rows that fit several."""
    text_column: Text | None = None
    """Column that holds the text; null is `text`, or else `content`."""
    prompt_column: Text | None = None
    """Column that holds the prompt; null is `prompt`."""
    completion_column: Text | None = None
    """Column that holds the completion; null is `completion`."""
    instruction_column: Text | None = None
    """Column that holds the instruction; null is `instruction`."""
    input_column: Text | None = None
    """Column that holds what the instruction is about, often empty; null is `input`."""
    output_column: Text | None = None
    """Column that holds the answer to the instruction; null is `output`."""
    messages_column: Text | None = None
    """Column that holds the conversation; null is `messages`, or else `conversations` or `conversation`."""
    system_column: Text | None = None
    """Column that holds the system prompt of a conversation or an instruction; null is `system`, where there is one."""
    tools_column: Text | None = None
    """Column that holds the tools that a conversation may call; null is `tools`, where there is one."""
    group_column: Text | None = None
    """Column whose equal values (a document, a patient, an author) never straddle a split; null: rows stand alone."""
    licence: Text | None = None
    """Licence of the examples, for the record and the model card; null is what the source itself says."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ExamplesConfig:
    """What every source of examples has: cleaning, splits and lengths."""

    max_seq_len: PositiveInt = 512
    """Longest example in tokens; what is longer is handled as `overlong` says."""
    overlong: Literal["truncate", "split", "drop"] = "truncate"
    """What happens to an example longer than `max_seq_len`: its end is cut, it is split into windows that are examples
    of their own, or it is left out (of `eval_path` it is cut then). All are counted."""
    chat_template: Text | None = None
    """File of a chat template (Jinja) that takes the place of the tokenizer's own, for a base model that has none."""
    add_tokens: tuple[str, ...] = ()
    """Tokens that the model lacks, such as a template's markers. They are added to its vocabulary and trained."""
    end_token: Text | None = None
    """Token that ends an answer, such as `<|im_end|>`; null is the tokenizer's end token."""
    on_bad_record: Literal["refuse", "skip"] = "refuse"
    """What happens where a record can't be read: the run ends with all of them named by line, or they are left out and
    counted by reason."""
    duplicates: Literal["keep", "exact", "normalised", "near"] = "exact"
    """Of which likeness only the first example is kept: `exact`; `normalised`, but for case, white space and
    punctuation; `near`, nearly the same words. Each takes in those before it. Those kept never straddle a split."""
    find_near_duplicates: bool = True
    """Whether examples of nearly the same words are looked for (MinHash), so that none straddles a split."""
    near_duplicate_threshold: Threshold = 0.8
    """Share of common runs of five words (Jaccard) from which two examples count as near-duplicates."""
    min_words: PositiveInt | None = None
    """Fewest words of an example; shorter ones are left out. null sets no bound."""
    max_words: PositiveInt | None = None
    """Most words of an example; longer ones are left out. null sets no bound."""
    min_tokens: PositiveInt | None = None
    """Fewest tokens of an example; shorter ones are left out, but for those of `eval_path`. null sets no bound."""
    max_tokens: PositiveInt | None = None
    """Most tokens of an example before `overlong` is applied; longer ones are left out, but for those of `eval_path`.
    null sets no bound."""
    outliers: Literal["ignore", "report", "drop"] = "report"
    """What happens to examples of unusual length, much repetition or many odd characters: nothing, listed by file and
    line, or left out."""
    loss_outliers: Literal["ignore", "report", "drop"] = "ignore"
    """The same for examples on which the base model's loss is unusually high or low; measuring it takes a forward pass
    over every training example."""
    personal_data: Literal["ignore", "warn", "mask", "drop"] = "warn"
    """What happens to e-mail addresses, phone, card and account numbers, and keys: nothing, a warning with their lines,
    a placeholder in their place before anything is written, or the example is left out."""
    write_clean: Text | None = None
    """File that gets the kept rows as JSONL, in their order; null writes none."""
    validation_fraction: Fraction = 0.05
    """Share of the examples for validation: early stopping and the best checkpoint. By content, never by order."""
    test_fraction: Fraction = 0.1
    """Share of the examples for the test set, which only `evaluate` reads. Not used where `eval_path` is given."""
    split_seed: NonNegativeInt = 0
    """Decides, with an example's content, into which split it falls. Independent of `seed`."""
    num_examples: PositiveInt | None = None
    """Rows for training at most; smaller sets are part of larger ones. null takes all. What a source's weight repeats,
    and the windows of `overlong: split`, come on top."""
    num_validation_examples: PositiveInt | None = None
    """Rows for validation at most, whatever number of windows they make; null takes all."""
    num_test_examples: PositiveInt | None = None
    """Rows for the test set at most, whatever number of windows they make; null takes all. Not used where `eval_path`
    is given: that file is measured whole."""
    eval_path: Text | None = None
    """File of examples that is the test set, or a folder or glob of such files; null takes `test_fraction` of the
    examples instead. Its format goes by content and name. Its columns are mapped as those of the examples where all
    of these are read alike; else they go by the shapes' own names."""
    num_workers: NonNegativeInt | None = None
    """Processes that prepare the data; 0 is this one alone, null a process a core where there is much to do."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class FilesConfig(ExamplesConfig, RowConfig):
    """Examples in files of the user's: JSONL, JSON, TXT, CSV or Parquet, compressed or not."""

    source: Literal["files"] = "files"
    """Where the examples come from."""
    path: Text | None = None
    """A file, a folder of files, or a glob such as `parts/*.jsonl.gz`."""
    format: Literal["auto", "jsonl", "json", "txt", "csv", "parquet"] = "auto"
    """The files' format; `auto` goes by content and name."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EmbeddedConfig(ExamplesConfig):
    """Python functions of packages that are installed with llmtune."""

    source: Literal["embedded"] = "embedded"
    """Where the examples come from."""
    form: Literal["completion", "text"] = "completion"
    """`completion`: the prompt is signature and docstring, the completion is the body; `text`: whole functions."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class HubDataConfig(ExamplesConfig, RowConfig):
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


@dataclass(config=STRICT, frozen=True, kw_only=True)
class SourceConfig(RowConfig):
    """One source of a mixture: `path`, or `id` of a data set on the Hub."""

    path: Text | None = None
    """A file, a folder of files, or a glob."""
    format: Literal["auto", "jsonl", "json", "txt", "csv", "parquet"] = "auto"
    """The files' format; `auto` goes by content and name."""
    id: Text | None = None
    """Id of a data set on the Hub."""
    subset: Text | None = None
    """Named configuration of the data set; null takes its default."""
    split: Text = "train"
    """Split of the data set to read."""
    revision: Text | None = None
    """Branch, tag or commit on the Hub; null takes the newest."""
    weight: PositiveFloat = 1.0
    """How often an epoch takes each training example of the source: 2 is twice; 0.5 takes half of them once, chosen by
    content; 2.5 takes half of them three times and the others twice."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class MixtureConfig(ExamplesConfig):
    """Several sources, each with a weight."""

    source: Literal["mixture"] = "mixture"
    """Where the examples come from."""
    sources: tuple[SourceConfig, ...] = ()
    """The sources, each a mapping: `path` or `id`, `weight`, and the keys that say how its rows are read."""


DataConfig = Annotated[FilesConfig | EmbeddedConfig | HubDataConfig | MixtureConfig, Field(discriminator="source")]
