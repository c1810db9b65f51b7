"""Data sets on the Hugging Face Hub."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.config.data import HubDataConfig
from llmtune.data.records import Problems, RecordSet, records_digest
from llmtune.data.rows import SHAPES_IN_WORDS, RowReader
from llmtune.errors import DataError, LlmtuneError
from llmtune.hub_answers import FULL_COMMIT, Asked, first_line, hub_explained, unreachable
from llmtune.logs import say

_DEFAULT_BRANCH = "main"


@dataclass(frozen=True)
class _Commit:
    """What a data set's branch, tag or commit leads to."""

    sha: str | None
    licence: str | None = None
    away: DataError | None = None
    """Why the Hub didn't say so; None where it did."""


def resolve_revision(config: HubDataConfig) -> tuple[str | None, str | None]:
    """Commit and licence of a data set.

    Where the Hub can't be reached, the commit is the one that the branch or tag led to when it last was, None where it
    never was; the licence is None.

    Raises:
        DataError: the Hub has no such data set or revision, or refuses it.
    """
    found = _resolve(config)
    return found.sha, found.licence


def read_hub(config: HubDataConfig) -> RecordSet:
    """Every example of one split of a data set. A row's number, counted from 1, takes the place of the line.

    Raises:
        DataError: the data set can't be had, or has rows that can't be read.
    """
    commit = _resolve(config)
    name = f"{config.id}/{config.subset}" if config.subset else _id(config)
    table = _load(config, commit)
    problems = Problems()
    rows = RowReader(f"{name}@{config.split}", problems)
    for number, row in enumerate(table, start=1):
        rows.add(number, row)
    problems.raise_if_any()
    if not rows.records:
        raise DataError(f"data.id={config.id}: split {config.split} holds no example; rows need {SHAPES_IN_WORDS}")
    subset, licence = config.subset or table.info.config_name, commit.licence
    origin: dict[str, Any] = {"id": config.id, "subset": subset, "split": config.split, "licence": licence}
    origin |= {"revision": commit.sha or _commit_read(table), "rows": rows.num_rows, "forms": dict(rows.forms)}
    origin |= {"unread_columns": sorted(rows.unread_columns), "sha256": records_digest(rows.records)}
    return RecordSet(rows.records, origin, dict(rows.skipped))


def _resolve(config: HubDataConfig) -> _Commit:
    from huggingface_hub import HfApi

    try:
        with hub_explained(_asked(config), DataError):
            info = HfApi().dataset_info(_id(config), revision=config.revision)
            if info.gated:
                HfApi().auth_check(_id(config), repo_type="dataset")
    except DataError as error:
        if error.__cause__ is None or not unreachable(error.__cause__):
            raise
        return _Commit(config.revision if _is_commit(config.revision) else _last_known(config), away=error)
    if info.sha is not None and not _is_commit(config.revision):
        _remember(config, info.sha)
    card = info.card_data
    return _Commit(info.sha, card.get("license") if card is not None else None)


def _load(config: HubDataConfig, commit: _Commit) -> Any:
    """The rows of the split at a commit; without the Hub, those that the cache keeps of it.

    Raises:
        DataError: they can't be had.
    """
    import datasets

    if Path(_id(config)).exists():
        raise DataError(
            f"data.id={config.id}: a folder of that name stands here and would be read instead of the Hub's; "
            "set data.path to a file in it, or type the command in another folder"
        )
    asked = _asked(config)
    try:
        with hub_explained(asked, DataError):
            if commit.away is not None:
                return _from_cache(config, commit.sha, commit.away)
            table = datasets.load_dataset(_id(config), config.subset, split=config.split, revision=commit.sha)
    except LlmtuneError:
        raise
    except ValueError as error:
        raise DataError(f"{asked.words}: data.subset or data.split doesn't fit: {first_line(error)}") from error
    except Exception as error:  # what a file that can't be read raises depends on its format
        raise DataError(
            f"{asked.words} can't be loaded ({first_line(error.__cause__ or error)}); mend the file and set data.path"
        ) from error
    read = _commit_read(table)
    if commit.sha is not None and read not in (None, commit.sha):
        raise DataError(
            f"{asked.words}: commit {commit.sha} can't be loaded, and the cache holds another, {read}; type the "
            "command again, or set data.revision to the one"
        )
    return table


def _from_cache(config: HubDataConfig, commit: str | None, away: DataError) -> Any:
    """The rows of the split as an earlier run prepared them from that commit.

    Raises:
        DataError: the cache lacks them; it says why the Hub wasn't asked.
    """
    from datasets import config as datasets_config
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    owner, _, name = _id(config).rpartition("/")
    root = Path(datasets_config.HF_DATASETS_CACHE) / "___".join(filter(None, [owner, camelcase_to_snakecase(name)]))
    kept = [path for path in root.glob(f"{config.subset or '*'}/*/{commit or '*'}") if _is_commit(path.name)]
    kept.sort(key=lambda path: (path.parts[-3] == "default", path.stat().st_mtime))
    subsets = sorted({path.parts[-3] for path in kept})
    if not kept or (commit is None and config.revision is not None):
        raise away
    if len(subsets) > 1 and "default" not in subsets:
        raise DataError(f"data.id={config.id}: the cache holds several; set data.subset to one of {', '.join(subsets)}")
    subset, version, sha = kept[-1].parts[-3:]
    say(f"data.id={config.id}: the Hub wasn't reached; reading commit {sha[:12]}, {subset}, from the cache")
    builder = Cache(repo_id=_id(config), dataset_name=name, config_name=subset, version=version, hash=sha)
    return builder.as_dataset(split=config.split)


def _asked(config: HubDataConfig) -> Asked:
    revision = f" data.revision={config.revision}" if config.revision else ""
    return Asked(f"data.id={config.id}{revision}", _id(config), "data set", "download the file and set data.path")


def _id(config: HubDataConfig) -> str:
    if not config.id:
        raise DataError("data.id is missing; give the id of a data set on the Hub, such as tatsu-lab/alpaca")
    return config.id


def _is_commit(revision: str | None) -> bool:
    return bool(revision and FULL_COMMIT.fullmatch(revision))


def _branch_file(config: HubDataConfig) -> Path:
    """Where the Hub's cache keeps the commit that a branch or tag led to."""
    from huggingface_hub import constants

    folder = f"datasets--{_id(config).replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE) / folder / "refs" / (config.revision or _DEFAULT_BRANCH)


def _remember(config: HubDataConfig, commit: str) -> None:
    file = _branch_file(config)
    with suppress(OSError):  # a cache that can't be written to serves as well while the Hub is there
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(commit)


def _last_known(config: HubDataConfig) -> str | None:
    file = _branch_file(config)
    commit = file.read_text().strip() if file.is_file() else None
    return commit if _is_commit(commit) else None


def _commit_read(table: Any) -> str | None:
    """The commit in the path of a cached data set: `.../<config>/<version>/<commit>/<file>.arrow`."""
    for file in getattr(table, "cache_files", []):
        commit = Path(file["filename"]).parent.name
        if _is_commit(commit):
            return commit
    return None
