"""Prepared data: every split as tokens on disk, built once and found again by what it was built from."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.config.data import DataConfig
from llmtune.data.deciding.decisions import SPLITS
from llmtune.data.encoding.description import TokenizerDescription, describe_tokenizer
from llmtune.data.encoding.fast_engine import SWITCH
from llmtune.data.preparing.alone import alone
from llmtune.data.preparing.build import build
from llmtune.data.preparing.report import TEST_CLUSTERS, TRAIN_ROWS, read_report, table_figures, without_rows
from llmtune.data.preparing.verified import check_files
from llmtune.data.reading.sources import Source, open_eval_sources, open_sources
from llmtune.data.token_table import TokenTable
from llmtune.logs import warn
from llmtune.runs.file_digest import sha256_of_all

_WITHOUT_EFFECT = {"path", "id", "eval_path", "format", "sources", "write_clean", "num_workers", "loss_outliers"}
"""Options that the sources' digests stand for, or that change nothing of what is written."""
_LIBRARIES = ("tokenizers", "transformers", "rensa", "fastokens", "jinja2", "pyarrow", "numpy", "datasets")
_CODE_OUTSIDE = ("config/data.py", "config/row_columns.py", "credentials.py")
"""Modules of other rooms that decide as well what is written."""
_TICK_SECONDS = 0.02
"""More than the smallest difference between two times that file systems tell apart."""


@dataclass(frozen=True)
class PreparedData:
    """The three splits and what is known about them."""

    train: TokenTable
    validation: TokenTable
    test: TokenTable
    digest: str
    """Hex sha256 of every token and label, in their order."""
    folder: Path
    report: dict[str, Any]
    """Plain JSON values, as `llmtune.data.preparing.report` describes."""
    sources: tuple[Source, ...] = ()
    """Where the examples come from, but for those of a test file."""
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [K]: rows that gave training examples and give none any more, counted as in `KEPT`."""

    def split(self, name: str) -> TokenTable:
        """The split named train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def test_clusters(self) -> list[str]:
        """Of each test example, what it belongs to: those of one cluster can't be taken as independent.

        A group (`group_column`, a module of the embedded functions), near-duplicates, or at least the windows and turns
        of one row. It has the name of its first row, so it doesn't depend on the tokenizer.
        """
        numbers = np.load(self.folder / TEST_CLUSTERS, allow_pickle=False)[self.test.order]
        _, firsts, cluster = np.unique(numbers, return_index=True, return_inverse=True)
        rows = [example_id.partition("-")[0] for example_id in self.test.example_ids()]
        return [rows[first] for first in firsts[cluster]]

    def without(self, left_out: np.ndarray, reason: str) -> "PreparedData":
        """The data without some training examples; a row of which none stays counts as dropped.

        What was counted as rows became tokens (lengths, what was cut, windows) stays as it was of all rows.

        Args:
            left_out: bool [N] over the training split.
            reason: why, for the account.
        """
        digest = hashlib.sha256(self.digest.encode() + np.packbits(left_out).tobytes()).hexdigest()
        row_of, train = np.load(self.folder / TRAIN_ROWS, allow_pickle=False), self.train.without(left_out)
        rows = row_of[train.order]
        gone = np.setdiff1d(row_of[self.train.order], rows)
        report = without_rows(self.report, gone, reason)
        split = report["splits"]["train"] | table_figures(train, rows)
        report["splits"] = report["splits"] | {"train": split}
        return replace(self, train=train, digest=digest, report=report, left_out=np.union1d(self.left_out, gone))


def prepare_data(config: DataConfig, tokenizer: Any, tokenizer_digest: str, cache_dir: Path) -> PreparedData:
    """The data of a config as tokens, from the cache where it was built before.

    Args:
        config: sources, cleaning, lengths and splits.
        tokenizer: a transformers tokenizer.
        tokenizer_digest: tells tokenizers with different results apart.
        cache_dir: folder that keeps prepared data; several processes may use it at once.

    Raises:
        DataError: the examples can't be read, or leave a split empty; training and validation may be empty where
            all their examples also stand in the test file.
    """
    sources, eval_sources = open_sources(config, cache_dir), open_eval_sources(config, cache_dir)
    return prepare_sources(config, (sources, eval_sources), tokenizer, tokenizer_digest, cache_dir)


def prepare_sources(
    config: DataConfig,
    opened: tuple[list[Source], list[Source]],
    tokenizer: Any,
    tokenizer_digest: str,
    cache_dir: Path,
) -> PreparedData:
    """The data of opened sources as tokens; see `prepare_data`.

    Args:
        config: cleaning, lengths and splits.
        opened: sources that are divided, and those of the test set alone.
        tokenizer: a transformers tokenizer.
        tokenizer_digest: tells tokenizers with different results apart.
        cache_dir: folder that keeps prepared data.
    """
    sources, eval_sources = opened
    description = describe_tokenizer(tokenizer)
    key = _cache_key(config, description, tokenizer_digest, opened)
    folder = cache_dir / "prepared" / key
    found = _found_or_built(folder, lambda building: build(config, description, (sources, eval_sources), building))
    report = found.report | {"sources": list(_as_they_are(found.report["sources"], [*sources, *eval_sources]))}
    return replace(found, sources=tuple(sources), report=report)


def open_prepared(folder: Path) -> PreparedData:
    """Prepared data that was built before, each file the one that was written.

    A file that is as it was when its sha256 was last found right (size, times and inode) isn't read for it again.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    report = read_report(folder)
    check_files(folder, report["files"])
    tables = {name: TokenTable(folder / f"{name}.arrow", folder / f"{name}.order.npy") for name in SPLITS}
    return PreparedData(
        train=tables["train"],
        validation=tables["validation"],
        test=tables["test"],
        digest=report["digest"],
        folder=folder,
        report=report,
    )


def _as_they_are(known: Sequence[dict[str, Any]], sources: Sequence[Source]) -> Iterator[dict[str, Any]]:
    """The account of each source with where it is now, and what is known of it now: a licence, say."""
    for entry, source in zip(known, sources, strict=True):
        yield entry | {key: value for key, value in source.origin.items() if value is not None}


def _found_or_built(folder: Path, build_in: Callable[[Path], None]) -> PreparedData:
    """What stands in a folder, whole; built by one process while others wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder.parent / f"{folder.name}.lock", "preparing the data"):
        if folder.exists():
            try:
                return open_prepared(folder)
            except (OSError, ValueError) as error:
                warn(f"prepared data in {folder} is damaged ({error}); it is built again")
                shutil.rmtree(folder)
        for unfinished in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: we hold the lock
            shutil.rmtree(unfinished, ignore_errors=True)
        building = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            building.mkdir()
            build_in(building)
            time.sleep(_TICK_SECONDS)  # whatever changes from now on has another time than what was remembered
            building.replace(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return open_prepared(folder)


def _cache_key(
    config: DataConfig, description: TokenizerDescription, tokenizer_digest: str, sources: Iterable[list[Source]]
) -> str:
    options = {name: value for name, value in asdict(config).items() if name not in _WITHOUT_EFFECT}
    read = [[(part.name, part.digest, asdict(part.rows), part.weight) for part in parts] for parts in sources]
    versions = [*_versions(), unicodedata.unidata_version, os.environ.get(SWITCH) == "0"]
    content = [_code_digest(), versions, read, tokenizer_digest, _described(description), options]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _described(description: TokenizerDescription) -> dict[str, Any]:
    """What encoding takes from a tokenizer beside its rules, of which there is a digest."""
    names = {entry.name for entry in fields(description)} - {"backend", "tokenizer"}
    return {name: getattr(description, name) for name in sorted(names)}


@lru_cache
def _versions() -> tuple[str | None, ...]:
    """Versions of the libraries that take part in what is written, as far as they are installed."""
    installed = []
    for name in _LIBRARIES:
        try:
            installed.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            installed.append(None)
    return tuple(installed)


@lru_cache
def _code_digest() -> str:
    """Tells apart the versions of the code that decides what is written: this room, and some modules beside it."""
    root = Path(__file__).parents[2]
    files = sorted([*(root / "data").rglob("*.py"), *(root / name for name in _CODE_OUTSIDE)])
    return sha256_of_all((file.relative_to(root).as_posix(), file) for file in files)
