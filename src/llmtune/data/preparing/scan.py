"""The first pass: what each row is and what decides its place, without a token."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from llmtune.data.cleaning.fingerprints import fingerprint
from llmtune.data.cleaning.measures import measure
from llmtune.data.cleaning.personal_data import KINDS, find_personal_data
from llmtune.data.deciding.decisions import ScanColumns
from llmtune.data.deciding.splits import group_key, select_place, split_place
from llmtune.data.preparing.examples import BlockTask, ExampleReader
from llmtune.data.records import Record, content_hash
from llmtune.data.shaping.outcome import Unusable, fault_in
from llmtune.data.shaping.shapes import MOST_UNREAD, shape_of

_MOST_LISTED = 1000


@dataclass
class ScannedBlock:
    """What was found in one block; arrays have an entry a usable row."""

    source: int
    path: str
    columns: dict[str, np.ndarray]
    """`ScanColumns` by name, but for `source` and `is_eval`."""
    signatures: np.ndarray | None
    """uint32 [n, P] MinHash signatures, where near-duplicates are looked for."""
    shapes: Counter[str]
    read_columns: Counter[str]
    """Rows by the columns that their example is made of."""
    personal: Counter[str]
    """Occurrences of personal data by kind."""
    unusable: list[Unusable]
    unread_columns: set[str]


class Scanner:
    """Reads a block and measures its rows. Picklable.

    Args:
        reader: how blocks are read.
        split_seed: decides places.
        finds_personal: whether personal data is looked for.
        signs: whether near-duplicates will be looked for.
    """

    def __init__(self, reader: ExampleReader, split_seed: int, *, finds_personal: bool, signs: bool) -> None:
        self._reader = reader
        self._split_seed = split_seed
        self._finds_personal = finds_personal
        self._signs = signs

    def __call__(self, task: BlockTask) -> ScannedBlock:
        """What a block holds."""
        shaper = self._reader.shaper(task)
        records: list[Record] = []
        unusable: list[Unusable] = []
        for found in map(shaper, task.block.entries()):
            if isinstance(found, Record):
                records.append(found)
            else:
                unusable.append(found)
        kinds = [find_personal_data(record) if self._finds_personal else [] for record in records]
        records = [self._reader.kept(record) if found else record for record, found in zip(records, kinds, strict=True)]
        columns, signatures = _measured(records, kinds, self._split_seed, signs=self._signs)
        return ScannedBlock(
            source=task.source,
            path=task.block.path,
            columns=columns,
            signatures=signatures,
            shapes=Counter(map(shape_of, records)),
            read_columns=shaper.columns,
            personal=Counter(kind for found in kinds for kind in found),
            unusable=unusable,
            unread_columns=shaper.unread_columns,
        )


def _measured(
    records: Sequence[Record], kinds: Sequence[Sequence[str]], split_seed: int, *, signs: bool
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The columns of a block's records, each of its own type even where there is no record, and their signatures."""
    hashes = [content_hash(record) for record in records]
    named = list(zip(records, hashes, strict=True))
    prints = fingerprint(records, hashes, near=signs)
    measures = measure(records)
    columns = {
        "line": np.array([record.source_line for record in records], np.int64),
        "exact": prints.exact,
        "normalised": prints.normalised,
        "place": np.array([split_place(split_seed, record, digest) for record, digest in named], np.float64),
        "select_place": np.array([select_place(split_seed, digest) for digest in hashes], np.float64),
        "group": np.array([group_key(record) for record in records], np.uint64),
        "num_words": measures.num_words,
        "repetition": measures.repetition,
        "odd_share": measures.odd_share,
        "personal": np.array([_bits(found) for found in kinds], np.uint32),
    }
    return columns, prints.signatures


@dataclass
class SourceScan:
    """What the scan counted in one source."""

    num_rows: int = 0
    """Every row, good or not."""
    shapes: Counter[str] = field(default_factory=Counter)
    read_columns: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that give no example, by reason."""
    unread_columns: set[str] = field(default_factory=set)


@dataclass
class Scan:
    """The first pass over all sources; N usable rows in the sources' order."""

    columns: ScanColumns
    paths: list[str]
    """Names of files; `file` counts in them."""
    file: np.ndarray
    """int32 [N]: the file that each row is of."""
    block_sizes: list[int]
    """Usable rows of each block."""
    sources: list[SourceScan]
    personal: Counter[str]
    bad: Counter[str]
    """Records that can't be read, by reason."""
    listed_bad: list[str]
    """The first of them as `path:line: reason`."""

    def where(self, row: int) -> str:
        """A row's place as `path:line`."""
        return f"{self.paths[self.file[row]]}:{self.columns.line[row]}"


class _Column:
    """A column that grows where it lies: millions of rows aren't held twice while they are joined.

    Args:
        values: the first of them, or none; their type is the column's.
    """

    def __init__(self, values: np.ndarray) -> None:
        self._values = values.copy()
        self._size = len(values)

    def add(self, values: np.ndarray) -> None:
        """Put values behind those that are there."""
        size = self._size + len(values)
        if size > len(self._values):
            self._resize(size + size // 16)
        self._values[self._size : size] = values
        self._size = size

    def values(self) -> np.ndarray:
        """All values; none can be added afterwards."""
        self._resize(self._size)
        return self._values

    def _resize(self, size: int) -> None:
        self._values.resize((size, *self._values.shape[1:]), refcheck=False)  # no view of it is out


def gather(blocks: Iterable[ScannedBlock], is_eval: list[bool], signatures: BinaryIO | None) -> Scan:
    """All blocks as one.

    Args:
        blocks: in the sources' order.
        is_eval: of each source, whether it is the test set's.
        signatures: gets every row's signature, one after the other.
    """
    sources = [SourceScan() for _ in is_eval]
    columns = {name: _Column(none) for name, none in _measured([], [], 0, signs=False)[0].items()}
    files: dict[str, int] = {}
    sizes: list[int] = []
    source_of: list[int] = []
    file_of: list[int] = []
    personal: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    listed: list[str] = []
    for block in blocks:
        for name, column in block.columns.items():
            columns[name].add(column)
        sizes.append(len(block.columns["line"]))
        source_of.append(block.source)
        file_of.append(files.setdefault(block.path, len(files)))
        personal += block.personal
        _count(block, sources[block.source], bad, listed)
        if signatures is not None and block.signatures is not None:
            signatures.write(block.signatures.tobytes())
    values = {name: column.values() for name, column in columns.items()}
    rows = np.array(sizes, np.int64)
    source = np.repeat(np.array(source_of, np.int16), rows)
    return Scan(
        columns=ScanColumns(source=source, is_eval=np.array(is_eval, np.bool_)[source], **values),
        paths=list(files),
        file=np.repeat(np.array(file_of, np.int32), rows),
        block_sizes=sizes,
        sources=sources,
        personal=personal,
        bad=bad,
        listed_bad=listed,
    )


def _count(block: ScannedBlock, source: SourceScan, bad: Counter[str], listed: list[str]) -> None:
    source.num_rows += len(block.columns["line"]) + len(block.unusable)
    source.shapes += block.shapes
    source.read_columns += block.read_columns
    new = sorted(block.unread_columns - source.unread_columns)
    source.unread_columns.update(new[: MOST_UNREAD - len(source.unread_columns)])
    for row in block.unusable:
        kind = fault_in(row.reason) if row.is_mistake else row.reason
        source.dropped[kind] += 1
        if row.is_mistake:
            bad[kind] += 1
            if len(listed) < _MOST_LISTED:
                listed.append(f"{block.path}:{row.line}: {row.reason}")


def _bits(kinds: Sequence[str]) -> int:
    """The kinds of personal data as a bit each."""
    return sum(1 << KINDS.index(kind) for kind in set(kinds))
