"""Where examples come from, opened: files, the embedded packages, the Hub, or several of them."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtune.config.data import (
    DataConfig,
    EmbeddedConfig,
    FilesConfig,
    HubDataConfig,
    MixtureConfig,
    RowConfig,
    SourceConfig,
)
from llmtune.config.row_columns import EvalRowConfig
from llmtune.data.reading.blocks import Block
from llmtune.data.reading.descriptions import description_blocks
from llmtune.data.reading.embedded import LICENCE, PACKAGES, embedded_blocks, embedded_digest, installed_packages
from llmtune.data.reading.files import DataFile, digest_of, open_files
from llmtune.data.reading.hub import HubQuery, commit_read, hub_blocks, load, resolve
from llmtune.data.records import Record


@dataclass(frozen=True)
class Source:
    """Rows of one origin."""

    name: str
    """The path as it was typed, a data set's id, or what is embedded; `Block.path` is how its rows are named."""
    digest: str
    """Hex; tells apart what the blocks give, wherever the source lies."""
    origin: dict[str, Any]
    """For the record, as JSON has it: kind (file, hub or embedded), path or id, files, revision, subset, split,
    licence, sha256. A data set's subset is what was asked for until the rows are first read."""
    rows: RowConfig
    """How its rows are read."""
    make_blocks: Callable[[], Iterable[Block]] = field(repr=False, compare=False)
    num_bytes: Callable[[], int] = field(default=int, repr=False, compare=False)
    """About how much there is to read; of a data set on the Hub it is known once that is loaded."""
    weight: float = 1.0
    """How often an epoch takes each training example."""

    def blocks(self) -> Iterator[Block]:
        """The rows in blocks; the same each time.

        Raises:
            DataError: the source can't be had, or changed since it was opened.
        """
        yield from self.make_blocks()


def open_sources(config: DataConfig, cache_dir: Path) -> list[Source]:
    """The sources that a config names, in its order; none where it names a test file alone.

    Args:
        config: the data section.
        cache_dir: where digests of files are remembered.

    Raises:
        DataError: a source can't be found, or is of a kind that isn't read.
    """
    match config:
        case FilesConfig(path=None):
            return []
        case FilesConfig():
            return [_file_source(str(config.path), config.format, "data.path", _rows(config), cache_dir)]
        case EmbeddedConfig():
            return [_embedded_source(config.form)]
        case HubDataConfig():
            return [_hub_source(_query(config, "data"), _rows(config))]
        case MixtureConfig():
            return [_mixed(source, number, cache_dir) for number, source in enumerate(config.sources)]


def open_eval_sources(config: DataConfig, cache_dir: Path) -> list[Source]:
    """The source that is the test set alone, none where the test set is cut from the examples; see `open_sources`."""
    if config.eval_path is None:
        return []
    return [_file_source(config.eval_path, "auto", "data.eval_path", _eval_rows(config), cache_dir)]


def open_general_source(path: str, key: str, cache_dir: Path) -> Source:
    """The source of a file of text, or a folder or glob of such files; its columns go by the shapes' own names.

    Args:
        path: the file.
        key: what names it in errors.
        cache_dir: where digests of files are remembered.

    Raises:
        DataError: it can't be found, or is of a kind that isn't read.
    """
    return _file_source(path, "auto", key, EvalRowConfig(keys_in="nowhere"), cache_dir)


def open_description_source(num_pieces: int) -> Source | None:
    """The source of so many pieces of the installed packages' descriptions; None where there are none."""
    blocks = description_blocks(num_pieces)
    if not blocks:
        return None
    rows = [(block.path, row.text) for block in blocks for row in block.rows if isinstance(row, Record)]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    name = f"descriptions of {len(blocks)} installed packages"
    versions = {block.path: importlib.metadata.version(block.path) for block in blocks}
    origin = {"kind": "embedded", "packages": versions, "licence": None, "sha256": digest}
    return Source(name, digest, origin, RowConfig(), lambda: blocks)


def _mixed(config: SourceConfig, number: int, cache_dir: Path) -> Source:
    key = f"data.sources[{number}]"
    if config.path is None:
        source = _hub_source(_query(config, key), config)
    else:
        source = _file_source(config.path, config.format, f"{key}.path", config, cache_dir)
    return dataclasses.replace(source, weight=config.weight)


def _file_source(path: str, file_format: str, key: str, rows: RowConfig, cache_dir: Path) -> Source:
    files = open_files(path, file_format, key, rows, cache_dir)
    digest = digest_of(files)
    origin = {
        "kind": "file",
        "path": str(Path(path).expanduser().resolve()),
        "files": [file.origin for file in files],
        "licence": rows.licence,
        "sha256": files[0].sha256 if len(files) == 1 else digest,
    }
    num_bytes = sum(file.stamp.size for file in files)
    return Source(path, digest, origin, rows, lambda: _blocks_of(files, rows), lambda: num_bytes)


def _blocks_of(files: list[DataFile], rows: RowConfig) -> Iterator[Block]:
    for file in files:
        yield from file.blocks(rows)


def _embedded_source(form: str) -> Source:
    packages = installed_packages()
    digest = _digest("embedded", form, embedded_digest())
    origin = {"kind": "embedded", "packages": packages, "form": form, "licence": LICENCE, "sha256": digest}
    return Source(f"functions of {' and '.join(PACKAGES)}", digest, origin, RowConfig(), _Once(embedded_blocks, form))


class _Once:
    """The blocks of the embedded packages, which are parsed the first time."""

    def __init__(self, make: Callable[[str], list[Any]], form: str) -> None:
        self._make = make
        self._form = form
        self._blocks: list[Any] | None = None

    def __call__(self) -> Iterable[Block]:
        """The blocks."""
        if self._blocks is None:
            self._blocks = self._make(self._form)
        return self._blocks


def _hub_source(query: HubQuery, rows: RowConfig) -> Source:
    commit = resolve(query)
    table = None if commit.sha else load(query, commit)
    revision = commit.sha or commit_read(table)
    fingerprint = revision or table._fingerprint  # pyright: ignore[reportOptionalMemberAccess]
    digest = _digest("hub", query.id, query.subset, query.split, fingerprint)
    origin = {"kind": "hub", "id": query.id, "revision": revision, "subset": query.subset, "split": query.split}
    origin |= {"licence": rows.licence or commit.licence, "sha256": digest}

    def loaded() -> Any:
        nonlocal table
        table = load(query, commit) if table is None else table
        origin["subset"] = query.subset or table.info.config_name
        return table

    def blocks() -> Iterator[Block]:
        yield from hub_blocks(query, loaded())

    return Source(query.name, digest, origin, rows, blocks, lambda: loaded().data.nbytes)


def _query(config: HubDataConfig | SourceConfig, key: str) -> HubQuery:
    return HubQuery(config.id, config.subset, config.split, config.revision, key)


def _rows(config: RowConfig) -> RowConfig:
    """The part of a config that says how rows are read."""
    return RowConfig(**_row_keys(config))


def _row_keys(config: RowConfig) -> dict[str, Any]:
    return {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(RowConfig)}


def _eval_rows(config: DataConfig) -> EvalRowConfig:
    """How a test file is read: as the training data are, where all of them are read alike."""
    sources = config.sources if isinstance(config, MixtureConfig) else [config] if isinstance(config, RowConfig) else []
    kinds = [_row_keys(source) | {"licence": None, "group_column": None} for source in sources]
    if not kinds or any(kind != kinds[0] for kind in kinds):
        return EvalRowConfig(keys_in="nowhere")
    groups = {source.group_column for source in sources} - {None}
    group = groups.pop() if len(groups) == 1 else None
    keys_in = "sources" if isinstance(config, MixtureConfig) else "data"
    return EvalRowConfig(**{**kinds[0], "group_column": group, "keys_in": keys_in})


def _digest(*parts: str | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
