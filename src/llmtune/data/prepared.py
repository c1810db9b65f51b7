"""Prepared data: every split as tokens on disk, built once and found again by what it was built from."""

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from llmtune.config.data import DataConfig, FilesConfig
from llmtune.data.files import file_digest, find_file
from llmtune.data.records import RecordSet
from llmtune.data.sources import eval_digest, read_eval_records, read_records, source_digest
from llmtune.data.splits import SPLITS, Example, check_not_empty, split_records
from llmtune.data.token_table import TokenTable, TokenTableWriter
from llmtune.data.tokenize import IGNORED, ExampleTokenizer, TokenizedExample, parallel_tokenizers
from llmtune.logs import say, warn
from llmtune.runs.manifest import write_json

CODE_VERSION = 2
"""Raised with each change of this room that changes what is written; data of other versions is not used."""
_BATCH = 2048
_REPORT = "report.json"
_WHERE = {"path", "eval_path", "format"}
"""Options that the digests of the sources stand for, so that a file may lie anywhere."""


@dataclass(frozen=True)
class PreparedData:
    """The three splits and what is known about them."""

    train: TokenTable
    validation: TokenTable
    test: TokenTable
    digest: str
    """Hex sha256 of every token and label."""
    folder: Path
    report: dict[str, Any]
    """Plain JSON values: `origin` and `eval_origin`, `rows` (in, kept and dropped by reason, for each source),
    `splits` (counts by split), `num_test_in_training`, `files` (sha256)."""

    def split(self, name: str) -> TokenTable:
        """The split named train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


@dataclass(frozen=True)
class ShownExample:
    """An example for a person to look at."""

    source: str
    parts: tuple[tuple[str, bool], ...]
    """Its text, special tokens included, in pieces: the text and whether its tokens are supervised."""


def prepare_data(config: DataConfig, tokenizer: Any, tokenizer_digest: str, cache_dir: Path) -> PreparedData:
    """The data of a config as tokens, from the cache where it was built before.

    Args:
        config: source, lengths and splits.
        tokenizer: a transformers tokenizer.
        tokenizer_digest: tells tokenizers with different results apart.
        cache_dir: folder that keeps prepared data; several processes may use it at once.

    Raises:
        DataError: the examples can't be read, or leave a split empty; training and validation may be empty where
            all their examples also stand in the test file.
    """
    source = source_digest(config)
    records = None if source is not None else read_records(config)
    key = _cache_key(config, tokenizer, tokenizer_digest, source or str(records and records.origin["sha256"]))
    folder = cache_dir / "prepared" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{key}.lock"):
        if folder.exists():
            try:
                return open_prepared(folder, config)
            except (OSError, ValueError, KeyError) as error:
                warn(f"prepared data in {folder} is damaged ({error}); it is built again")
                shutil.rmtree(folder)
        building = folder.with_name(f".{key}.{os.getpid()}")
        shutil.rmtree(building, ignore_errors=True)
        try:
            _build(config, tokenizer, records or read_records(config), building)
            building.replace(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return open_prepared(folder, config)


def open_prepared(folder: Path, config: DataConfig) -> PreparedData:
    """Prepared data that was built before, each file checked against its sha256.

    Files of examples are named as `config` names them, wherever they lay when the data was built.

    Raises:
        OSError, ValueError, KeyError: a file is missing or damaged.
    """
    report = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
    for name, digest in report["files"].items():
        if file_digest(folder / name) != digest:
            raise ValueError(f"{name} has another sha256 than when it was written")
    training = config.path if isinstance(config, FilesConfig) else None
    for origin, path in (("origin", training), ("eval_origin", config.eval_path)):
        if path:
            report[origin]["path"] = str(find_file(path).resolve())
    paths = {"train": training, "validation": training, "test": config.eval_path or training}
    tables = {name: TokenTable(folder / f"{name}.arrow", paths[name]) for name in SPLITS}
    return PreparedData(**tables, digest=report["digest"], folder=folder, report=report)


def preview(table: TokenTable, tokenizer: Any, num_examples: int) -> list[ShownExample]:
    """The first examples of a split as text, with what is supervised told apart from what isn't."""
    shown = []
    for index in range(min(num_examples, len(table))):
        ids, learnt = table.input_ids(index), table.labels(index) != IGNORED
        borders = [0, *(np.flatnonzero(np.diff(learnt)) + 1), len(ids)]
        parts = tuple(
            (tokenizer.decode(ids[start:end].tolist(), clean_up_tokenization_spaces=False), bool(learnt[start]))
            for start, end in pairwise(borders)
        )
        shown.append(ShownExample(table.source(index), parts))
    return shown


def _cache_key(config: DataConfig, tokenizer: Any, tokenizer_digest: str, source: str) -> str:
    versions = {name: importlib.metadata.version(name) for name in ("tokenizers", "transformers")}
    template = getattr(tokenizer, "chat_template", None)
    options = {name: value for name, value in asdict(config).items() if name not in _WHERE}
    content = [CODE_VERSION, versions, source, eval_digest(config), tokenizer_digest, template, options]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _build(config: DataConfig, tokenizer: Any, records: RecordSet, folder: Path) -> None:
    """Write the splits and the report into a new folder."""
    folder.mkdir()
    eval_records = read_eval_records(config)
    splits = split_records(config, records.records, eval_records.records if eval_records else None)
    say(f"tokenising {sum(len(found) for found in splits.by_name.values())} examples")
    tokenize = ExampleTokenizer(tokenizer, config.max_seq_len)
    built: dict[str, _Built] = {}
    with parallel_tokenizers():
        for name in SPLITS:
            built[name] = _write_split(folder / f"{name}.arrow", splits.by_name[name], tokenize, config)
    lost = sum((split.dropped for split in built.values()), Counter[str]())
    why = f" after {', '.join(f'{count} were dropped: {reason}' for reason, count in lost.items())}" if lost else ""
    num_examples = {name: split.summary["num_examples"] for name, split in built.items()}
    check_not_empty(num_examples, config, why, training=bool(records.records) and not splits.num_test_in_training)
    training_splits = SPLITS if eval_records is None else ("train", "validation")
    rows = {"train": _account(records, splits.dropped["train"], {name: built[name] for name in training_splits})}
    if eval_records is not None:
        rows["eval"] = _account(eval_records, splits.dropped["eval"], {"test": built["test"]})
    report = {
        "code_version": CODE_VERSION,
        "digest": hashlib.sha256("".join(built[name].digest for name in SPLITS).encode()).hexdigest(),
        "origin": records.origin,
        "eval_origin": eval_records.origin if eval_records else None,
        "rows": rows,
        "splits": {name: built[name].summary for name in SPLITS},
        "num_test_in_training": splits.num_test_in_training,
        "files": {f"{name}.arrow": file_digest(folder / f"{name}.arrow") for name in SPLITS},
    }
    write_json(folder / _REPORT, report)


@dataclass(frozen=True)
class _Built:
    summary: dict[str, Any]
    dropped: Counter[str]
    digest: str


def _write_split(path: Path, examples: Sequence[Example], tokenize: ExampleTokenizer, config: DataConfig) -> _Built:
    dropped: Counter[str] = Counter()
    num_truncated = 0
    with TokenTableWriter(path) as writer:
        for start in range(0, len(examples), _BATCH):
            batch = examples[start : start + _BATCH]
            tokenized = tokenize([example.record for example in batch])
            reasons = [_why_dropped(tokens, config) for tokens in tokenized]
            dropped.update(reason for reason in reasons if reason)
            kept = [number for number, reason in enumerate(reasons) if not reason]
            num_truncated += sum(tokenized[number].truncated for number in kept)
            writer.write([batch[number] for number in kept], [tokenized[number] for number in kept])
    return _Built(_summary(TokenTable(path), num_truncated), dropped, writer.digest)


def _why_dropped(tokens: TokenizedExample, config: DataConfig) -> str | None:
    if tokens.truncated and config.overlong == "drop":
        return "longer than max_seq_len"
    if tokens.num_supervised_tokens == 0:
        return "no supervised token within max_seq_len" if tokens.truncated else "no supervised token"
    return None


def _summary(table: TokenTable, num_truncated: int) -> dict[str, Any]:
    num_tokens, num_supervised = int(table.num_tokens.sum()), int(table.num_supervised_tokens.sum())
    return {
        "num_examples": len(table),
        "num_tokens": num_tokens,
        "num_supervised_tokens": num_supervised,
        "supervised_share": num_supervised / num_tokens if num_tokens else 0.0,
        "num_supervised_bytes": int(table.num_supervised_bytes.sum()),
        "mean_tokens": num_tokens / len(table) if len(table) else 0.0,
        "longest_tokens": int(table.num_tokens.max()) if len(table) else 0,
        "num_truncated": num_truncated,
    }


def _account(records: RecordSet, dropped: Counter[str], built: dict[str, _Built]) -> dict[str, Any]:
    """Where each row of a source went."""
    reasons = sum((split.dropped for split in built.values()), Counter(records.skipped) + dropped)
    kept = {name: split.summary["num_examples"] for name, split in built.items()}
    num_rows = records.origin["rows"]
    assert num_rows == sum(kept.values()) + reasons.total(), (num_rows, kept, reasons)
    return {"in": num_rows, "kept": kept, "dropped": dict(reasons)}
