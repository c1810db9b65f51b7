"""Data sets on the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Any

from llmtune.config.data import HubDataConfig
from llmtune.data.records import Problems, RecordSet, records_digest
from llmtune.data.rows import SHAPES_IN_WORDS, RowReader
from llmtune.errors import DataError


def resolve_revision(config: HubDataConfig) -> tuple[str | None, str | None]:
    """Commit and licence of a data set; (None, None) where the Hub can't be reached.

    Raises:
        DataError: the Hub has no such data set or revision, or it needs an account.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().dataset_info(_id(config), revision=config.revision)
    except GatedRepoError as error:
        raise DataError(f"data.id={config.id} needs an account: accept its terms, then `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise DataError(f"data.revision={config.revision}: {config.id} has no such branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        raise DataError(f"data.id={config.id}: the Hub has no such data set, or it is private") from error
    except Exception:  # the Hub can't be reached: what that raises depends on the HTTP library of huggingface_hub
        return (config.revision, None) if _is_commit(config.revision) else (None, None)
    card = info.card_data
    return info.sha, card.get("license") if card is not None else None


def read_hub(config: HubDataConfig) -> RecordSet:
    """Every example of one split of a data set. A row's number, counted from 1, takes the place of the line.

    Raises:
        DataError: the data set can't be had, or has rows that can't be read.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    revision, licence = resolve_revision(config)
    name = f"{config.id}/{config.subset}" if config.subset else _id(config)
    try:
        table = datasets.load_dataset(_id(config), config.subset, split=config.split, revision=revision)
    except ValueError as error:
        raise DataError(f"data.id={config.id}: data.subset or data.split doesn't fit: {error}") from error
    except (OSError, DatasetsError) as error:
        raise DataError(
            f"data.id={config.id} can't be loaded ({type(error).__name__}: {error}); check the id and the network, "
            "or download the file and set data.path"
        ) from error
    problems = Problems()
    rows = RowReader(f"{name}@{config.split}", problems)
    for number, row in enumerate(table, start=1):
        rows.add(number, row)
    problems.raise_if_any()
    if not rows.records:
        raise DataError(f"data.id={config.id}: split {config.split} holds no example; rows need {SHAPES_IN_WORDS}")
    origin: dict[str, Any] = {"id": config.id, "subset": config.subset, "split": config.split, "licence": licence}
    origin |= {"revision": revision or _cached_revision(table), "rows": rows.num_rows, "forms": dict(rows.forms)}
    origin |= {"unread_columns": sorted(rows.unread_columns), "sha256": records_digest(rows.records)}
    return RecordSet(rows.records, origin, dict(rows.skipped))


def _id(config: HubDataConfig) -> str:
    if not config.id:
        raise DataError("data.id is missing; give the id of a data set on the Hub, such as tatsu-lab/alpaca")
    return config.id


def _is_commit(revision: str | None) -> bool:
    return bool(revision and re.fullmatch(r"[0-9a-f]{40}", revision))


def _cached_revision(table: Any) -> str | None:
    """The commit in the path of a cached data set: `.../<config>/<version>/<commit>/<file>.arrow`."""
    for file in getattr(table, "cache_files", []):
        commit = Path(file["filename"]).parent.name
        if _is_commit(commit):
            return commit
    return None
