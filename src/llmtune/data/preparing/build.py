"""From sources to tables: scan, decide, write, and the account of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from llmtune.config.data import DataConfig
from llmtune.data.cleaning.near_duplicates import NearClusters, cluster_near
from llmtune.data.deciding.decisions import SPLITS, Decisions
from llmtune.data.deciding.splits import check_not_empty, decide, needs_near, why_too_few
from llmtune.data.encoding.description import TokenizerDescription
from llmtune.data.encoding.fast_engine import EnginesDiffer
from llmtune.data.encoding.library_engine import parallel_tokenizers
from llmtune.data.encoding.tokenize import EncodingOptions
from llmtune.data.preparing.encode import Encoder, EncodeTask, Lost, WrittenSplit, write_tables
from llmtune.data.preparing.examples import BlockTask, ExampleReader
from llmtune.data.preparing.report import Account, write_report
from llmtune.data.preparing.scan import Scan, Scanner, gather
from llmtune.data.preparing.workers import Workers
from llmtune.data.reading.digests import changed
from llmtune.data.reading.sources import Source
from llmtune.data.shaping.refusals import refusal
from llmtune.data.token_table import write_order
from llmtune.errors import DataError
from llmtune.logs import progress, say, warn
from llmtune.runs.environment import usable_cores

_MUCH_BYTES = 12 * 2**20
"""Size of the sources from which several processes pay for their start."""


def build(
    config: DataConfig, description: TokenizerDescription, sources: tuple[list[Source], list[Source]], folder: Path
) -> None:
    """Write the splits' tables, their order and the report into an empty folder.

    Args:
        config: cleaning, lengths and splits.
        description: the tokenizer.
        sources: those that are divided, and those of the test set alone.
        folder: where to.

    Raises:
        DataError: the examples can't be read, or leave a split empty.
    """
    every = Sources(*sources)
    reader = ExampleReader(tuple(source.rows for source in every.all), masks=config.personal_data == "mask")
    with Workers(_num_workers(config, every.all, description)) as workers:
        job = _Job(config, every, reader, workers, folder)
        scan, near = _scan(job)
        decisions = decide(scan.columns, config, near, every.weights)
        tables, lost = _encode(job, description, scan, decisions)
    _refuse(config, lost.listed_bad, lost.bad)
    num_rows = {name: len(np.unique(table.rows)) for name, table in tables.items()}
    _check_not_empty(job, decisions, num_rows, lost)
    few = why_too_few(num_rows["test"], config)
    orders = {name: tables[name].examples_of(decisions.order(name)) for name in SPLITS}
    for name, order in orders.items():
        write_order(folder / f"{name}.order.npy", order)
    account = Account(
        config=config,
        sources=every.all,
        is_eval=every.is_eval,
        scan=scan,
        decisions=decisions,
        tables=tables,
        lost=lost,
        orders=orders,
        warnings=[*filter(None, [few]), *decisions.warnings],
        too_few_test=few is not None,
    )
    write_report(folder, account)


@dataclass(frozen=True)
class Sources:
    """All sources: those that are divided, then those of the test set alone."""

    training: list[Source]
    evaluation: list[Source]

    @property
    def all(self) -> list[Source]:
        """The sources in the order in which rows are counted."""
        return [*self.training, *self.evaluation]

    @property
    def is_eval(self) -> list[bool]:
        """Of each source, whether it is the test set's."""
        return [False] * len(self.training) + [True] * len(self.evaluation)

    @property
    def weights(self) -> list[float]:
        """Of each source, how often an epoch takes its training examples."""
        return [source.weight for source in self.all]

    def tasks(self) -> Iterator[BlockTask]:
        """Every block."""
        for number, source in enumerate(self.all):
            yield from (BlockTask(number, block) for block in source.blocks())


def _num_workers(config: DataConfig, sources: Sequence[Source], description: TokenizerDescription) -> int:
    if description.in_process_only:
        return 0
    if config.num_workers is not None:
        return config.num_workers
    num_bytes = sum(source.num_bytes() for source in sources)
    return usable_cores() if num_bytes >= _MUCH_BYTES and usable_cores() > 1 else 0


@dataclass(frozen=True)
class _Job:
    """What both passes work with."""

    config: DataConfig
    sources: Sources
    reader: ExampleReader
    workers: Workers
    folder: Path


def _scan(job: _Job) -> tuple[Scan, NearClusters | None]:
    """What every row is, and which are nearly the same."""
    config, sources, signs = job.config, job.sources, needs_near(job.config)
    scanner = Scanner(job.reader, config.split_seed, finds_personal=config.personal_data != "ignore", signs=signs)
    signatures = job.folder / "signatures.bin"
    with signatures.open("wb") as file:
        scan = gather(job.workers.map(scanner, sources.tasks()), sources.is_eval, file if signs else None)
    _refuse(config, scan.listed_bad, scan.bad)
    num_rows = len(scan.columns.line)
    near = cluster_near(signatures, config.near_duplicate_threshold) if signs and num_rows else None
    signatures.unlink()
    for source, found in zip(sources.all, scan.sources, strict=True):
        if not found.shapes:
            skipped = ", ".join(f"{count:,} skipped: {reason}" for reason, count in found.dropped.items())
            first = next(iter(source.origin.get("files", ())), {}).get("path", source.name)
            raise DataError(f"{first}:1: no example in this source ({skipped or 'it is empty'})")
    return scan, near


def _encode(
    job: _Job, description: TokenizerDescription, scan: Scan, decisions: Decisions
) -> tuple[dict[str, WrittenSplit], Lost]:
    """The kept rows as tables; once more with the library's tokenizer alone where the fast one fails its checks."""
    config = job.config
    options = EncodingOptions(config.max_seq_len, config.overlong, config.min_tokens, config.max_tokens)
    encoder = Encoder(job.reader, description, options)
    tasks = _kept_blocks(job.sources, scan, decisions)
    try:
        with parallel_tokenizers():
            return write_tables(job.folder, job.workers.map(encoder, tasks), scan.block_sizes)
    except EnginesDiffer as error:
        warn(f"{error}; all is tokenised again without it")
    return _encode(job, replace(description, may_be_fast=False), scan, decisions)


def _kept_blocks(sources: Sources, scan: Scan, decisions: Decisions) -> Iterator[EncodeTask]:
    num_rows, first = int((decisions.split >= 0).sum()), 0
    say(f"tokenising {num_rows:,} rows")
    with progress("prepare", num_rows) as line:
        for task, size in zip_longest(sources.tasks(), scan.block_sizes):
            if task is None or size is None:
                raise changed(scan.paths[-1] if task is None else task.block.path)
            split = decisions.split[first : first + size]
            yield EncodeTask(task, split, sources.is_eval[task.source])
            first += size
            line.advance(int((split >= 0).sum()))


def _refuse(config: DataConfig, listed: list[str], bad: Counter[str]) -> None:
    if bad and config.on_bad_record == "refuse":
        raise refusal(listed, bad, "mend them, or set data.on_bad_record=skip to leave them out")


def _check_not_empty(job: _Job, decisions: Decisions, num_rows: Mapping[str, int], lost: Lost) -> None:
    """Check that tokenising has left each split some rows."""
    found = lost.by_reason().items()
    why = f" after {', '.join(f'{count:,} were dropped: {reason}' for reason, count in found)}" if found else ""
    training = bool(job.sources.training) and not (job.config.eval_path and decisions.overlap.listed)
    check_not_empty(num_rows, job.config, why, training=training)
