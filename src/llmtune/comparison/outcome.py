"""What a comparison finds: rows with error bars, the differences between them, and a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmtune.comparison.results import RunCost, RunResult
from llmtune.comparison.statistics import Estimate, Interval

Metric = Literal["loss", "bits_per_byte"]
"""What rows are ranked by: nats per supervised token; under several tokenizers bits per UTF-8 byte."""
Standing = Literal["reference", "good enough", "worse", "undecided", "no claim"]
"""How a method stands to full fine-tuning. `no claim`: one seed, or full's own gain can't be told from 0."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting of what varies: its runs differ in the seed alone."""

    name: str
    """Such as `lora`, or `method=lora method.rank=8`; `base model` for an untrained one."""
    values: Mapping[str, Any]
    """What varies, key to value; for a base model only what belongs to it (its `model`)."""
    group: Mapping[str, Any]
    """The part of `values` that poses the question (model, data): rows of one group are ranked among each other."""
    method: str | None
    """None for a base model."""
    runs: tuple[RunResult, ...]
    """One a seed, by seed; for a base model a run that measured it."""
    loss: Estimate
    """By `Comparison.metric`."""
    perplexity: Interval
    """e to the mean loss per supervised token."""
    gain: Estimate | None = None
    """The base model's loss less this row's; None for a base model and where no base was measured."""
    forgetting: Estimate | None = None
    """Loss on general text above the base model's, nats per token (bits per byte): what was forgotten."""
    forgets: bool = False
    """Whether that loss rose for sure: a claim at 5 %, after Holm over all rows of the comparison."""
    is_worse_than_base: bool = False
    """Whether training raised the loss for sure: a claim at 5 %, after Holm over all rows' gains."""
    validation_loss: float | None = None
    """Mean over seeds."""
    is_chosen: bool = False
    """Whether it stands for its method in its group: the only row of it, or the one with the lowest validation loss."""
    to_full: Estimate | None = None
    """Loss above full's; None without a full row in the group, and for that row."""
    quality: Interval | None = None
    """(base - row) / (base - full), 1 is full's own, by Fieller; None where full's gain includes 0."""
    standing: Standing | None = None
    """None where the group has no full row, and for rows that don't stand for their method."""
    adjusted_p: float | None = None
    """Of the test behind `standing`, after Holm."""
    would_decide: str | None = None
    """Where undecided: what would decide it, such as `about 4 more seeds`."""
    cost: RunCost = field(default_factory=RunCost)
    """Means over its runs."""
    price: float | None = None
    """Mean cost of its training at `compare.price_per_hour`."""

    @property
    def is_base(self) -> bool:
        """Whether this is an untrained model."""
        return self.method is None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its runs; empty for a base model."""
        return () if self.is_base else tuple(run.seed for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows against each other."""

    first: str
    second: str
    """Names of rows."""
    difference: Estimate
    """The first's loss less the second's, on the seeds that both have."""
    adjusted_p: float
    """Two-sided, after Holm over all pairs of the group."""
    lower: str | None
    """The row whose loss is lower, where that can be claimed at 5 %."""


@dataclass(frozen=True, kw_only=True)
class MissingRun:
    """A job that can't be counted."""

    name: str
    status: str
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The whole of it."""

    title: str
    """Such as the sweep's name."""
    metric: Metric
    axes: Sequence[str]
    """The keys that vary, `seed` left out, in the config's order."""
    rows: Sequence[Row]
    """Base models first; then by group, in it by loss, lowest first."""
    pairs: Sequence[Pair]
    """Empty where nothing may be ranked."""
    unfair: Sequence[str] = ()
    """Why nothing is ranked, a sentence each."""
    notes: Sequence[str] = ()
    """What weakens it or should be known, a sentence each."""
    verdict: str = ""
    """What to do, in a sentence or a few; also where nothing can be claimed."""
    missing: Sequence[MissingRun] = ()
    margin: float = 0.05
    """`compare.margin`."""
    times_compare: bool = True
    """False where jobs shared a device, so that their times say nothing about each other."""
    price_per_hour: float | None = None
    num_test_examples: int = 0
    num_test_tokens: int = 0
    num_clusters: int = 0
    """Independent clusters among the test examples."""
