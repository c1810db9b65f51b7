"""Tokenised examples on disk: one Arrow file a split, memory-mapped."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from llmtune.data.splits import Example
from llmtune.data.tokenize import TokenizedExample

_SCHEMA = pa.schema(
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
        source_path: the file that all examples come from, named as of now; None where the table's own names hold.
    """

    def __init__(self, path: Path, source_path: str | None = None) -> None:
        self._source_path = source_path
        # The map stays open for as long as the table's arrays, which are views of it, live.
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.num_tokens: np.ndarray = self._table["num_tokens"].to_numpy()
        """int64 [N]: tokens of each example."""
        self.num_supervised_tokens: np.ndarray = self._table["num_supervised_tokens"].to_numpy()
        """int64 [N]: supervised tokens of each example, its first token never among them: nothing predicts it."""
        self.num_supervised_bytes: np.ndarray = self._table["num_supervised_bytes"].to_numpy()
        """int64 [N]: UTF-8 bytes of the text of those tokens."""
        self._input_ids = _Lists(self._table["input_ids"])
        self._labels = _Lists(self._table["labels"])

    def __len__(self) -> int:
        return self._table.num_rows

    def input_ids(self, index: int) -> np.ndarray:
        """int32 [T], read-only: an example's tokens."""
        return self._input_ids[index]

    def labels(self, index: int) -> np.ndarray:
        """int32 [T], read-only: the token itself at supervised positions, -100 elsewhere; not shifted."""
        return self._labels[index]

    def example_id(self, index: int) -> str:
        """An example's name, which follows from its content."""
        return self._table["example_id"][index].as_py()

    def source(self, index: int) -> str:
        """Where an example comes from, as `path:line`."""
        return f"{self._source_path or self._table['source_path'][index]}:{self._table['source_line'][index]}"


class _Lists:
    """Views of the lists in a chunked column, without a copy."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._values = [chunk.values.to_numpy(zero_copy_only=True) for chunk in column.chunks]
        self._offsets = [chunk.offsets.to_numpy(zero_copy_only=True) for chunk in column.chunks]
        self._first_rows = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self._first_rows[-1]:
            raise IndexError(f"row {index} of a table of {self._first_rows[-1]} rows")
        chunk = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        row = index - self._first_rows[chunk]
        offsets = self._offsets[chunk]
        return self._values[chunk][offsets[row] : offsets[row + 1]]


class TokenTableWriter:
    """Writes a token table, some examples at a time; use as a context manager.

    Args:
        path: the file to write.
    """

    def __init__(self, path: Path) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._file.close()

    @property
    def digest(self) -> str:
        """Hex sha256 of the content hashes, tokens and labels written so far, whatever Arrow's version."""
        return self._digest.hexdigest()

    def write(self, examples: Sequence[Example], tokenized: Sequence[TokenizedExample]) -> None:
        """Add examples with their tokens."""
        if not examples:
            return
        for example, tokens in zip(examples, tokenized, strict=True):
            self._digest.update(f"{example.content_hash} {len(tokens.input_ids)}\n".encode())
            self._digest.update(tokens.input_ids.astype("<i4").tobytes())
            self._digest.update(tokens.labels.astype("<i4").tobytes())
        columns = [
            _list_column([tokens.input_ids for tokens in tokenized]),
            _list_column([tokens.labels for tokens in tokenized]),
            pa.array([example.content_hash[:_EXAMPLE_ID_LENGTH] for example in examples], pa.string()),
            pa.array([example.content_hash for example in examples], pa.string()),
            pa.array([example.record.source_path for example in examples], pa.string()),
            pa.array([example.record.source_line for example in examples], pa.int64()),
            pa.array([len(tokens.input_ids) for tokens in tokenized], pa.int64()),
            pa.array([tokens.num_supervised_tokens for tokens in tokenized], pa.int64()),
            pa.array([tokens.num_supervised_bytes for tokens in tokenized], pa.int64()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))


def _list_column(lists: Sequence[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *(len(values) for values in lists)], dtype=np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(lists), pa.int32()))
