"""Tokenised examples on disk: an Arrow file a split in the sources' order, and the order in which they count."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from llmtune.data.encoding.example import TokenizedExample

SCHEMA = pa.schema(
    [
        ("input_ids", pa.large_list(pa.int32())),
        ("labels", pa.large_list(pa.int32())),
        ("example_id", pa.string()),
        ("content_hash", pa.string()),
        ("source_path", pa.string()),
        ("source_line", pa.int64()),
        ("num_tokens", pa.int64()),
        ("num_supervised_tokens", pa.int64()),
        ("num_supervised_bytes", pa.int64()),
    ]
)
_EXAMPLE_ID_LENGTH = 16


class TokenTable:
    """One split's examples, read from a memory-mapped file; N examples, T tokens in one of them.

    Args:
        path: a file that `TokenTableWriter` wrote.
        order: the file that `write_order` wrote: which stored example each of the N is; None takes them as stored.
    """

    def __init__(self, path: Path, order: Path | None = None) -> None:
        # The map stays open for as long as the table's arrays, which are views of it, live.
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._order = np.arange(self._table.num_rows) if order is None else np.load(order, allow_pickle=False)
        self.num_tokens: np.ndarray = self._ordered("num_tokens")
        """int64 [N]: tokens of each example."""
        self.num_supervised_tokens: np.ndarray = self._ordered("num_supervised_tokens")
        """int64 [N]: supervised tokens of each example, its first token never among them: nothing predicts it."""
        self.num_supervised_bytes: np.ndarray = self._ordered("num_supervised_bytes")
        """int64 [N]: UTF-8 bytes of the text of those tokens."""
        self._input_ids = _Lists(self._table["input_ids"])
        self._labels = _Lists(self._table["labels"])

    def __len__(self) -> int:
        return len(self._order)

    @property
    def order(self) -> np.ndarray:
        """int64 [N]: which stored example each is."""
        return self._order

    def input_ids(self, index: int) -> np.ndarray:
        """int32 [T], read-only: an example's tokens."""
        return self._input_ids[self._stored(index)]

    def labels(self, index: int) -> np.ndarray:
        """int32 [T], read-only: the token itself at supervised positions, -100 elsewhere; not shifted."""
        return self._labels[self._stored(index)]

    def example_id(self, index: int) -> str:
        """An example's name, which follows from its content; windows and turns of one row are told apart."""
        return self._table["example_id"][self._stored(index)].as_py()

    def example_ids(self) -> list[str]:
        """The names of all examples; see `example_id`."""
        return self._texts("example_id")

    def content_hashes(self) -> np.ndarray:
        """Hex sha256 of what each example's row says, bytes [N]; the same for all windows and turns of a row."""
        return np.array(self._texts("content_hash"), np.bytes_)

    def tokens_digest(self) -> str:
        """Hex sha256 of all tokens and labels in the examples' order; other orders and borders give another."""
        digest = hashlib.sha256(self.num_tokens.astype("<i8").tobytes())
        for lists in (self._input_ids, self._labels):
            for values in lists.each(self._order):
                digest.update(np.ascontiguousarray(values, "<i4").data)
        return digest.hexdigest()

    def content_digest(self) -> str:
        """Hex sha256 of the content hashes of the rows that the examples are made of, in order: of no tokenizer."""
        is_row = np.array(["-" not in name for name in self.example_ids()], np.bool_)
        return hashlib.sha256(self.content_hashes()[is_row].tobytes()).hexdigest()

    def source(self, index: int) -> str:
        """Where an example comes from, as `path:line`."""
        stored = self._stored(index)
        return f"{self._table['source_path'][stored]}:{self._table['source_line'][stored]}"

    def without(self, left_out: np.ndarray) -> "TokenTable":
        """The table without some examples.

        Args:
            left_out: bool [N], True for what goes.
        """
        table = object.__new__(TokenTable)
        table.__dict__.update(vars(self))
        table._order = self._order[~left_out]
        for name in ("num_tokens", "num_supervised_tokens", "num_supervised_bytes"):
            setattr(table, name, getattr(self, name)[~left_out])
        return table

    def _stored(self, index: int) -> int:
        if not 0 <= index < len(self._order):
            raise IndexError(f"row {index} of a table of {len(self._order)} rows")
        return int(self._order[index])

    def _texts(self, column: str) -> list[str]:
        texts = self._table[column].to_pylist()
        return [texts[stored] for stored in self._order.tolist()]

    def _ordered(self, column: str) -> np.ndarray:
        return self._table[column].to_numpy()[self._order]


class _Lists:
    """Views of the lists in a chunked column, without a copy."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._values = [chunk.values.to_numpy(zero_copy_only=True) for chunk in column.chunks]
        self._offsets = [chunk.offsets.to_numpy(zero_copy_only=True) for chunk in column.chunks]
        self._first_rows = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])

    def __getitem__(self, index: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        row = index - self._first_rows[chunk]
        offsets = self._offsets[chunk]
        return self._values[chunk][offsets[row] : offsets[row + 1]]

    def each(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The lists of rows, one after the other."""
        chunks = np.searchsorted(self._first_rows, rows, side="right") - 1
        within = rows - self._first_rows[chunks]
        for chunk, row in zip(chunks.tolist(), within.tolist(), strict=True):
            offsets = self._offsets[chunk]
            yield self._values[chunk][offsets[row] : offsets[row + 1]]


class TokenTableWriter:
    """Writes a token table, a batch at a time; use as a context manager.

    Args:
        path: the file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._file.close()

    def write(self, batch: pa.RecordBatch | None) -> None:
        """Add what `token_batch` made."""
        if batch is not None and batch.num_rows:
            self._writer.write_batch(batch)


def write_order(path: Path, order: np.ndarray) -> None:
    """Write which stored example each example of a table is.

    Args:
        path: the file.
        order: int64 [N]; an example that is repeated stands in it several times.
    """
    with path.open("wb") as file:
        np.save(file, order.astype(np.int64), allow_pickle=False)


def token_batch(names: Mapping[str, Sequence[str | int]], tokenized: Sequence[TokenizedExample]) -> pa.RecordBatch:
    """Examples as the table stores them.

    Args:
        names: `example_id`, `content_hash`, `source_path` and `source_line` of each.
        tokenized: their tokens.
    """
    columns = [
        _list_column([tokens.input_ids for tokens in tokenized]),
        _list_column([tokens.labels for tokens in tokenized]),
        *(pa.array(names[name], pa.string()) for name in ("example_id", "content_hash", "source_path")),
        pa.array(names["source_line"], pa.int64()),
        pa.array([len(tokens.input_ids) for tokens in tokenized], pa.int64()),
        pa.array([tokens.num_supervised_tokens for tokens in tokenized], pa.int64()),
        pa.array([tokens.num_supervised_bytes for tokens in tokenized], pa.int64()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def example_id(content_hash: str, part: int = 0) -> str:
    """Name of an example: the start of its content's hash, and which part of the row it is where there are several."""
    return content_hash[:_EXAMPLE_ID_LENGTH] + (f"-{part}" if part else "")


def example_digest(content_hash: str, tokens: TokenizedExample) -> bytes:
    """16 bytes that tell apart what is learnt, whatever Arrow's version."""
    digest = hashlib.sha256(f"{content_hash} {len(tokens.input_ids)}\n".encode())
    digest.update(tokens.input_ids.astype("<i4").tobytes())
    digest.update(tokens.labels.astype("<i4").tobytes())
    return digest.digest()[:16]


def _list_column(lists: Sequence[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *(len(values) for values in lists)], dtype=np.int64)
    values = np.concatenate(lists) if lists else np.zeros(0, np.int32)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()))
