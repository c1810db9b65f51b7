"""The second pass: the rows that were kept become tokens, in tables of their split."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmtune.data.deciding.decisions import SPLITS
from llmtune.data.encoding.description import TokenizerDescription
from llmtune.data.encoding.example import TokenizedExample
from llmtune.data.encoding.tokenize import EncodedRecord, EncodingOptions, ExampleTokenizer
from llmtune.data.preparing.examples import BlockTask, ExampleReader
from llmtune.data.reading.digests import changed
from llmtune.data.records import Record, content_hash
from llmtune.data.shaping.outcome import fault_in
from llmtune.data.token_table import TokenTableWriter, example_digest, example_id, token_batch

_BATCH = 512
"""Records that are tokenised in one call."""
_MOST_LISTED = 1000


@dataclass(frozen=True)
class EncodeTask:
    """A block and which of its usable rows are kept; picklable."""

    block: BlockTask
    split: np.ndarray
    """int8 [n]: number of the split of each usable row, -1 for what is left out."""
    is_eval: bool = False
    """Whether the block is of a test file, which is measured whole: no bounds of tokens apply to it."""


@dataclass
class EncodedSplit:
    """What a block gives to one split."""

    batch: pa.RecordBatch | None = None
    """None while examples are gathered."""
    rows: list[int] = field(default_factory=list)
    """Of each example, the usable row of the block that it is made of."""
    digests: list[bytes] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of each kept row before anything was cut."""
    counts: Counter[str] = field(default_factory=Counter)
    """`truncated`, `cut_tokens`, `windows`, `by_turn`, `thinking_dropped`."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that gives no example once it is tokenised."""

    row: int
    """Usable row of the block."""
    line: int
    reason: str
    is_mistake: bool


@dataclass
class EncodedBlock:
    """What a block gives."""

    path: str
    splits: dict[str, EncodedSplit]
    dropped: list[Dropped]


class Encoder:
    """Tokenises the kept rows of a block. Picklable; the tokenizer is made where it works.

    Args:
        reader: how blocks are read.
        description: the tokenizer.
        options: lengths; of a test file's rows none is left out for its length.
    """

    def __init__(self, reader: ExampleReader, description: TokenizerDescription, options: EncodingOptions) -> None:
        self._reader = reader
        self._description = description
        self._options = options
        self._made: dict[bool, ExampleTokenizer] = {}
        """By whether it is for a test file."""

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_made": {}}

    def __call__(self, task: EncodeTask) -> EncodedBlock:
        """The block's tables.

        Raises:
            DataError: the block isn't what it was in the first pass.
        """
        parts = {name: _Part() for name in SPLITS}
        dropped: list[Dropped] = []
        kept = self._kept(task)
        while batch := list(islice(kept, _BATCH)):
            records = [record for _, record in batch]
            for (row, record), encoded in zip(batch, self._tokenizer(task)(records), strict=True):
                if encoded.dropped is not None:
                    dropped.append(Dropped(row, record.source_line, encoded.dropped, encoded.is_mistake))
                else:
                    parts[SPLITS[task.split[row]]].add(row, record, encoded)
        return EncodedBlock(task.block.block.path, {name: part.finished() for name, part in parts.items()}, dropped)

    def _kept(self, task: EncodeTask) -> Iterator[tuple[int, Record]]:
        if not np.any(task.split >= 0):
            return
        usable = (found for found in self._reader.read(task.block) if isinstance(found, Record))
        for row, (record, split) in enumerate(zip_longest(usable, task.split)):
            if record is None or split is None:
                raise changed(task.block.block.path)
            if split >= 0:
                yield row, self._reader.kept(record)

    def _tokenizer(self, task: EncodeTask) -> ExampleTokenizer:
        if task.is_eval not in self._made:
            options = self._options
            if task.is_eval:
                overlong = "split" if options.overlong == "split" else "truncate"
                options = replace(options, overlong=overlong, min_tokens=None, max_tokens=None)
            self._made[task.is_eval] = ExampleTokenizer(self._description, options)
        return self._made[task.is_eval]


class _Part:
    """Gathers one split's examples of a block."""

    def __init__(self) -> None:
        self._names: dict[str, list[str | int]] = {
            name: [] for name in ("example_id", "content_hash", "source_path", "source_line")
        }
        self._tokenized: list[TokenizedExample] = []
        self._split = EncodedSplit()

    def add(self, row: int, record: Record, encoded: EncodedRecord) -> None:
        """Take the examples of a record."""
        digest = content_hash(record)
        for part, tokens in enumerate(encoded.examples):
            values = (example_id(digest, part), digest, record.source_path, record.source_line)
            for name, value in zip(self._names, values, strict=True):
                self._names[name].append(value)
            self._tokenized.append(tokens)
            self._split.rows.append(row)
            self._split.digests.append(example_digest(digest, tokens))
        self._split.lengths.append(encoded.num_tokens)
        self._split.counts += Counter(
            truncated=int(encoded.is_cut),
            cut_tokens=encoded.num_cut_tokens,
            windows=encoded.num_windows if encoded.num_windows > 1 else 0,
            by_turn=int(encoded.by_turn),
            thinking_dropped=int(encoded.drops_thinking),
        )

    def finished(self) -> EncodedSplit:
        """What was gathered."""
        self._split.batch = token_batch(self._names, self._tokenized)
        return self._split


class WrittenSplit:
    """A split's table on disk; M stored examples of K rows."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """As in `EncodedSplit`."""
        self._rows: list[np.ndarray] = []
        self._digests: list[bytes] = []
        self._lengths: list[np.ndarray] = []

    def add(self, split: EncodedSplit, first_row: int) -> None:
        """Take what a block gave; its rows are counted from `first_row`."""
        self._rows.append(np.array(split.rows, np.int64) + first_row)
        self._digests.append(b"".join(split.digests))
        self._lengths.append(np.array(split.lengths, np.int64))
        self.counts += split.counts

    @cached_property
    def rows(self) -> np.ndarray:
        """int64 [M]: the usable row, over all sources, of each stored example; ascending."""
        return np.concatenate([np.zeros(0, np.int64), *self._rows])

    @cached_property
    def digests(self) -> np.ndarray:
        """uint8 [M, 16]: what tells the examples apart."""
        return np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, 16)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [K]: tokens of each row before anything was cut."""
        return np.concatenate([np.zeros(0, np.int64), *self._lengths])

    def examples_of(self, rows: np.ndarray) -> np.ndarray:
        """Stored examples of rows, in the rows' order; a row that gives none is passed over."""
        first = np.searchsorted(self.rows, rows, side="left")
        count = np.searchsorted(self.rows, rows, side="right") - first
        ends = np.cumsum(count)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - count, count)
        return np.repeat(first, count) + within


class Lost:
    """The rows that gave no example once they were tokenised, over all sources; a few bytes each."""

    def __init__(self) -> None:
        self.bad: Counter[str] = Counter()
        """Bad records by fault."""
        self.listed_bad: list[str] = []
        """The first of them as `path:line: reason`."""
        self._reasons: dict[str, int] = {}
        self._rows: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []

    def add(self, block: EncodedBlock, first_row: int) -> None:
        """Take what a block lost; its rows are counted from `first_row`."""
        numbers: list[int] = []
        for row in block.dropped:
            reason = fault_in(row.reason) if row.is_mistake else row.reason
            numbers.append(self._reasons.setdefault(reason, len(self._reasons)))
            if row.is_mistake:
                self.bad[reason] += 1
                if len(self.listed_bad) < _MOST_LISTED:
                    self.listed_bad.append(f"{block.path}:{row.line}: {row.reason}")
        if numbers:
            self._rows.append(np.array([row.row for row in block.dropped], np.int64) + first_row)
            self._numbers.append(np.array(numbers, np.int32))

    @property
    def rows(self) -> np.ndarray:
        """int64 [L]: the rows, ascending."""
        return np.concatenate([np.zeros(0, np.int64), *self._rows])

    def by_reason(self, among: np.ndarray | None = None) -> Counter[str]:
        """How many there are by reason.

        Args:
            among: bool [N] over all rows: which of them count; None counts all.
        """
        numbers = np.concatenate([np.zeros(0, np.int32), *self._numbers])
        counts = np.bincount(numbers if among is None else numbers[among[self.rows]], minlength=len(self._reasons))
        return Counter({reason: int(count) for reason, count in zip(self._reasons, counts, strict=True) if count})


def write_tables(
    folder: Path, blocks: Iterable[EncodedBlock], block_sizes: Sequence[int]
) -> tuple[dict[str, WrittenSplit], Lost]:
    """Write each split's table, in the sources' order.

    Args:
        folder: gets `train.arrow`, `validation.arrow` and `test.arrow`.
        blocks: in the sources' order.
        block_sizes: usable rows of each block.

    Returns:
        What was written by split, and the rows that gave no example.
    """
    tables = {name: WrittenSplit() for name in SPLITS}
    lost = Lost()
    first = 0
    with ExitStack() as files:
        writers = {name: files.enter_context(TokenTableWriter(folder / f"{name}.arrow")) for name in SPLITS}
        for block, size in zip(blocks, block_sizes, strict=True):
            for name, split in block.splits.items():
                writers[name].write(split.batch)
                tables[name].add(split, first)
            lost.add(block, first)
            first += size
    return tables, lost
