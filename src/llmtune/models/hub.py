"""Folders of models and adapters on the Hugging Face Hub, downloaded into its cache."""

import json
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from llmtune.errors import ModelError
from llmtune.hub_answers import FULL_COMMIT, Asked, hub_explained
from llmtune.models.digest import file_sha256
from llmtune.models.quiet import no_progress_bars

_SHA256 = re.compile(r"[0-9a-f]{64}")


def snapshot(
    repo_id: str, *, revision: str | None, patterns: list[str], asked: str, instead: str = "give a folder"
) -> Path:
    """Folder with a repository's files, downloaded where they aren't in the cache; a commit of the Hub names it.

    A full commit that is in the cache asks nothing of the network. A branch or tag is looked up on the Hub; where that
    can't be reached, the commit that the cache knows it by is taken.

    Args:
        repo_id: `owner/name`.
        revision: branch, tag or commit; None takes the newest.
        patterns: names of the files that are wanted, with `*`.
        asked: the keys that name the repository, such as `model.id=a/b model.revision=x`; messages begin with it.
        instead: what can be done without the Hub, for messages.

    Raises:
        ModelError: the files can't be had, or arrived damaged.
    """
    if revision and FULL_COMMIT.fullmatch(revision):
        folder = _cached(repo_id, revision, patterns)
        if folder is not None:
            return _undamaged(folder, asked)
    with hub_explained(Asked(asked, repo_id, "model", instead), ModelError):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    return _undamaged(folder, asked)


def missing_weights(folder: Path) -> list[str]:
    """Names of weight files that an index in the folder lists and that aren't there."""
    listed: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        listed |= set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    return sorted(name for name in listed if not (folder / name).exists())


def _cached(repo_id: str, commit: str, patterns: list[str]) -> Path | None:
    """The commit's folder in the cache; None unless its weights are complete."""
    try:
        with no_progress_bars():
            folder = Path(snapshot_download(repo_id, revision=commit, allow_patterns=patterns, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if any(folder.glob("*.safetensors")) and not missing_weights(folder) else None


def _undamaged(folder: Path, asked: str) -> Path:
    """The folder, its weights compared with the sha256 by which the Hub names them in the cache.

    Raises:
        ModelError: a file differs; it is removed, so that the next try downloads it again.
    """
    for link in sorted(folder.glob("*.safetensors")):
        if not link.is_symlink():
            continue
        blob = folder.parent.parent / "blobs" / link.readlink().name
        if _SHA256.fullmatch(blob.name) and blob.exists() and file_sha256(link) != blob.name:
            for path in {link.resolve(), blob, link}:
                path.unlink(missing_ok=True)
            raise ModelError(
                f"{asked}: {link.name} is damaged (its sha256 isn't the Hub's) and was removed from the Hub cache; "
                "type the command again to download it"
            )
    return folder
