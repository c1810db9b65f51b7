"""Where examples come from: files, the embedded packages, the Hub."""

import hashlib
import json
from dataclasses import asdict

from llmtune.config.data import DataConfig, EmbeddedConfig, FilesConfig, HubDataConfig
from llmtune.data.embedded import embedded_digest, read_embedded
from llmtune.data.files import file_digest, find_file, read_file
from llmtune.data.hub import read_hub, resolve_revision
from llmtune.data.records import RecordSet
from llmtune.errors import DataError


def read_records(config: DataConfig) -> RecordSet:
    """Every example of the source that a config names, in the source's order.

    Raises:
        DataError: the source can't be found or read.
    """
    match config:
        case FilesConfig():
            return read_file(_path(config), config.format)
        case EmbeddedConfig():
            return read_embedded(config.form)
        case HubDataConfig():
            return read_hub(config)


def read_eval_records(config: DataConfig) -> RecordSet | None:
    """Every example of `eval_path`; None where the test set is cut from the examples.

    Raises:
        DataError: the file can't be found or read.
    """
    if config.eval_path is None:
        return None
    return read_file(config.eval_path, key="data.eval_path")


def source_digest(config: DataConfig) -> str | None:
    """Hex sha256 that changes when what `read_records` and `read_eval_records` give changes; cheap to have.

    Returns:
        None where a data set's commit can't be told without the Hub.

    Raises:
        DataError: the source can't be found.
    """
    match config:
        case FilesConfig():
            source = file_digest(find_file(_path(config)))
        case EmbeddedConfig():
            source = embedded_digest()
        case HubDataConfig():
            revision, _ = resolve_revision(config)
            if revision is None:
                return None
            source = revision
    evaluation = file_digest(find_file(config.eval_path, key="data.eval_path")) if config.eval_path else None
    content = json.dumps([source, evaluation, asdict(config)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _path(config: FilesConfig) -> str:
    if not config.path:
        raise DataError("data.path is missing; name a JSONL, JSON, TXT, CSV or Parquet file")
    return config.path
