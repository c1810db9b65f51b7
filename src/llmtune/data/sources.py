"""Where examples come from: files, the embedded packages, the Hub."""

from llmtune.config.data import DataConfig, EmbeddedConfig, FilesConfig, HubDataConfig
from llmtune.data.embedded import embedded_digest, read_embedded
from llmtune.data.files import file_digest, find_file, format_of, read_file
from llmtune.data.hub import read_hub, resolve_revision
from llmtune.data.records import RecordSet, records_digest

_EVAL_KEY = "data.eval_path"


def read_records(config: DataConfig) -> RecordSet:
    """Every example of the source that a config names, in the source's order; none where only a test file is named.

    Raises:
        DataError: the source can't be found or read.
    """
    match config:
        case FilesConfig(path=None):
            return RecordSet([], {"path": None, "rows": 0, "sha256": records_digest([])})
        case FilesConfig():
            return read_file(str(config.path), config.format)
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
    return read_file(config.eval_path, key=_EVAL_KEY)


def source_digest(config: DataConfig) -> str | None:
    """Tells apart what `read_records` gives under the same options, wherever it stands; cheap to have.

    Returns:
        A file's format and sha256, the sha256 of the embedded sources, or a data set's commit; None where that can't
        be told without the Hub.

    Raises:
        DataError: the source can't be found.
    """
    match config:
        case FilesConfig(path=None):
            return "no file"
        case FilesConfig():
            file = find_file(str(config.path))
            return f"{format_of(file, config.format)} {file_digest(file)}"
        case EmbeddedConfig():
            return embedded_digest()
        case HubDataConfig():
            return resolve_revision(config)[0]


def eval_digest(config: DataConfig) -> str | None:
    """Tells apart what `read_eval_records` gives, wherever it stands: format and sha256 of the file, None without one.

    Raises:
        DataError: the file can't be found.
    """
    if config.eval_path is None:
        return None
    file = find_file(config.eval_path, key=_EVAL_KEY)
    return f"{format_of(file, key=_EVAL_KEY)} {file_digest(file)}"
