"""Data sets on the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.data.reading.blocks import Block
from llmtune.data.reading.tables import table_blocks
from llmtune.errors import DataError, LlmtuneError
from llmtune.hub_answers import FULL_COMMIT, Asked, first_line, hub_explained, unreachable
from llmtune.logs import say

_DEFAULT_BRANCH = "main"
_ROWS = 1000


@dataclass(frozen=True)
class HubQuery:
    """Which rows of which data set are asked for."""

    id: str | None
    subset: str | None
    split: str
    revision: str | None
    key: str = "data"
    """Config key of the source, for messages."""

    @property
    def name(self) -> str:
        """How its rows are named."""
        return f"{self.id}/{self.subset}@{self.split}" if self.subset else f"{_id(self)}@{self.split}"


@dataclass(frozen=True)
class Commit:
    """What a data set's branch, tag or commit leads to."""

    sha: str | None
    """None where the Hub can't be reached and never said."""
    licence: str | None = None
    away: DataError | None = None
    """Why the Hub didn't say so; None where it did."""


def resolve(query: HubQuery) -> Commit:
    """Commit and licence of a data set.

    Where the Hub can't be reached, the commit is the one that the branch or tag led to when it last was, None where it
    never was; the licence is None.

    Raises:
        DataError: the Hub has no such data set or revision, or refuses it.
    """
    from huggingface_hub import HfApi

    try:
        with hub_explained(_asked(query), DataError):
            info = HfApi().dataset_info(_id(query), revision=query.revision)
            if info.gated:
                HfApi().auth_check(_id(query), repo_type="dataset")
    except DataError as error:
        if error.__cause__ is None or not unreachable(error.__cause__):
            raise
        return Commit(query.revision if _is_commit(query.revision) else _last_known(query), away=error)
    if info.sha is not None and not _is_commit(query.revision):
        _remember(query, info.sha)
    card = info.card_data
    return Commit(info.sha, card.get("license") if card is not None else None)


def load(query: HubQuery, commit: Commit) -> Any:
    """The `datasets` table of the split at a commit; without the Hub, what the cache keeps of it.

    Raises:
        DataError: it can't be had.
    """
    import datasets

    if Path(_id(query)).exists():
        raise DataError(
            f"{query.key}.id={query.id}: a folder of that name stands here and would be read instead of the Hub's; "
            "name a file in it as the path, or type the command in another folder"
        )
    asked = _asked(query)
    try:
        with hub_explained(asked, DataError):
            if commit.away is not None:
                return _from_cache(query, commit.sha, commit.away)
            table = datasets.load_dataset(_id(query), query.subset, split=query.split, revision=commit.sha)
    except LlmtuneError:
        raise
    except ValueError as error:
        raise DataError(
            f"{asked.words}: {query.key}.subset or {query.key}.split doesn't fit: {first_line(error)}"
        ) from error
    except Exception as error:  # what a file that can't be read raises depends on its format
        raise DataError(
            f"{asked.words} can't be loaded ({first_line(error.__cause__ or error)}); mend the file and set data.path"
        ) from error
    read = commit_read(table)
    if commit.sha is not None and read not in (None, commit.sha):
        raise DataError(
            f"{asked.words}: commit {commit.sha} can't be loaded, and the cache holds another, {read}; type the "
            f"command again, or set {query.key}.revision to the one"
        )
    return table


def hub_blocks(query: HubQuery, table: Any) -> Iterator[Block]:
    """The rows of a table that `load` gave."""
    yield from table_blocks(query.name, table.with_format("arrow").iter(_ROWS))


def commit_read(table: Any) -> str | None:
    """The commit in the path of a cached data set: `.../<config>/<version>/<commit>/<file>.arrow`."""
    for file in getattr(table, "cache_files", []):
        commit = Path(file["filename"]).parent.name
        if _is_commit(commit):
            return commit
    return None


def _from_cache(query: HubQuery, commit: str | None, away: DataError) -> Any:
    """The rows of the split as an earlier run prepared them from that commit.

    Raises:
        DataError: the cache lacks them; it says why the Hub wasn't asked.
    """
    from datasets import config as datasets_config
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    owner, _, name = _id(query).rpartition("/")
    root = Path(datasets_config.HF_DATASETS_CACHE) / "___".join(filter(None, [owner, camelcase_to_snakecase(name)]))
    kept = [path for path in root.glob(f"{query.subset or '*'}/*/{commit or '*'}") if _is_commit(path.name)]
    kept.sort(key=lambda path: (path.parts[-3] == "default", path.stat().st_mtime))
    subsets = sorted({path.parts[-3] for path in kept})
    if not kept or (commit is None and query.revision is not None):
        raise away
    if len(subsets) > 1 and "default" not in subsets:
        raise DataError(
            f"{query.key}.id={query.id}: the cache holds several; set {query.key}.subset to one of {', '.join(subsets)}"
        )
    subset, version, sha = kept[-1].parts[-3:]
    say(f"{query.key}.id={query.id}: the Hub wasn't reached; reading commit {sha[:12]}, {subset}, from the cache")
    builder = Cache(repo_id=_id(query), dataset_name=name, config_name=subset, version=version, hash=sha)
    return builder.as_dataset(split=query.split)


def _asked(query: HubQuery) -> Asked:
    revision = f" {query.key}.revision={query.revision}" if query.revision else ""
    return Asked(f"{query.key}.id={query.id}{revision}", _id(query), "data set", "download the file and set data.path")


def _id(query: HubQuery) -> str:
    if not query.id:
        raise DataError(f"{query.key}.id is missing; give the id of a data set on the Hub, such as tatsu-lab/alpaca")
    return query.id


def _is_commit(revision: str | None) -> bool:
    return bool(revision and FULL_COMMIT.fullmatch(revision))


def _branch_file(query: HubQuery) -> Path:
    """Where the Hub's cache keeps the commit that a branch or tag led to."""
    from huggingface_hub import constants

    folder = f"datasets--{_id(query).replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE) / folder / "refs" / (query.revision or _DEFAULT_BRANCH)


def _remember(query: HubQuery, commit: str) -> None:
    file = _branch_file(query)
    with suppress(OSError):  # a cache that can't be written to serves as well while the Hub is there
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(commit)


def _last_known(query: HubQuery) -> str | None:
    file = _branch_file(query)
    commit = file.read_text().strip() if file.is_file() else None
    return commit if _is_commit(commit) else None
