"""Prepared data: every split as tokens on disk, built once and found again by what it was built from."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from llmtune.config.data import DataConfig
from llmtune.data.decisions import SPLITS
from llmtune.data.preparing.build import build
from llmtune.data.preparing.report import REPORT, read_report
from llmtune.data.reading.digests import sha256_of
from llmtune.data.reading.sources import Source, open_eval_sources, open_sources
from llmtune.data.token_table import TokenTable
from llmtune.logs import warn
from llmtune.runs.manifest import write_json

_SEEN = "seen.json"
_WITHOUT_EFFECT = {"path", "id", "eval_path", "format", "sources", "write_clean", "num_workers"}
"""Options that the sources' digests stand for, or that change nothing of what is written."""
_LIBRARIES = ("tokenizers", "transformers", "rensa")
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

    def split(self, name: str) -> TokenTable:
        """The split named train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def without(self, left_out: np.ndarray, reason: str) -> "PreparedData":
        """The data without some training examples.

        Args:
            left_out: bool [N] over the training split.
            reason: why, for the account.
        """
        digest = hashlib.sha256(self.digest.encode() + np.packbits(left_out).tobytes()).hexdigest()
        train = self.train.without(left_out)
        split = self.report["splits"]["train"] | {"num_examples": len(train)}
        left = self.report.get("left_out_later", {}) | {reason: int(left_out.sum())}
        report = self.report | {"splits": self.report["splits"] | {"train": split}, "left_out_later": left}
        return replace(self, train=train, digest=digest, report=report)


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
    key = _cache_key(config, tokenizer, tokenizer_digest, [sources, eval_sources])
    folder = cache_dir / "prepared" / key
    found = _found_or_built(folder, lambda building: build(config, tokenizer, (sources, eval_sources), building))
    return replace(found, sources=tuple(sources))


def open_prepared(folder: Path) -> PreparedData:
    """Prepared data that was built before, each file the one that was written.

    A file that is as it was when its sha256 was last found right (size, times and inode) isn't read for it again.

    Raises:
        OSError, ValueError, KeyError: a file is missing or damaged.
    """
    report = read_report(folder)
    _check_files(folder, report["files"])
    tables = {name: TokenTable(folder / f"{name}.arrow", folder / f"{name}.order.npy") for name in SPLITS}
    return PreparedData(
        train=tables["train"],
        validation=tables["validation"],
        test=tables["test"],
        digest=report["digest"],
        folder=folder,
        report=report,
    )


def _found_or_built(folder: Path, build_in: Callable[[Path], None]) -> PreparedData:
    """What stands in a folder, whole; built by one process while others wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        if folder.exists():
            try:
                return open_prepared(folder)
            except (OSError, ValueError, KeyError) as error:
                warn(f"prepared data in {folder} is damaged ({error}); it is built again")
                shutil.rmtree(folder)
        for unfinished in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: we hold the lock
            shutil.rmtree(unfinished, ignore_errors=True)
        building = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            building.mkdir()
            build_in(building)
            building.replace(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        time.sleep(_TICK_SECONDS)
        _remember_files(folder, read_report(folder)["files"])
        return open_prepared(folder)


def _check_files(folder: Path, digests: Mapping[str, str]) -> None:
    seen = folder / _SEEN
    try:
        known = json.loads(seen.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known == {name: _stamp(folder / name) for name in (*digests, REPORT)}:
        return
    for name, digest in digests.items():
        if sha256_of(folder / name) != digest:
            raise ValueError(f"{name} has another sha256 than when it was written")
    _remember_files(folder, digests)


def _remember_files(folder: Path, digests: Mapping[str, str]) -> None:
    write_json(folder / _SEEN, {name: _stamp(folder / name) for name in (*digests, REPORT)})


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _cache_key(config: DataConfig, tokenizer: Any, tokenizer_digest: str, sources: Sequence[list[Source]]) -> str:
    options = {name: value for name, value in asdict(config).items() if name not in _WITHOUT_EFFECT}
    read = [[(part.name, part.digest, asdict(part.rows), part.weight) for part in parts] for parts in sources]
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    template = getattr(tokenizer, "chat_template", None)
    content = [_code_digest(), versions, unicodedata.unidata_version, read, tokenizer_digest, template, options]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


@lru_cache
def _code_digest() -> str:
    """Tells apart the versions of this room, which decides what is written."""
    room = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(room.rglob("*.py")):
        digest.update(f"{file.relative_to(room).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
