"""Upload of a checked export to the Hugging Face Hub: who may is asked before any work, what arrived after it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmtune.config.export import ExportConfig
from llmtune.errors import ConfigError, ExportCheckFailed, UserError
from llmtune.hub_answers import Asked, first_line, hub_explained, token_place
from llmtune.logs import say
from llmtune.models.adapter_files import CONFIG_FILE

PUSHED_FORMATS = ("hf", "adapter")
"""Formats that the Hub's users load by a repository's name, the first of those that are written is uploaded."""
_KEY = "export.push_to_hub"


@dataclass(frozen=True)
class Pushed:
    """An upload that arrived."""

    repo: str
    """`owner/name`."""
    commit: str
    url: str
    """Page of the commit."""
    private: bool

    def as_json(self) -> dict[str, Any]:
        """The upload as plain values."""
        return asdict(self)


def check_access(config: ExportConfig) -> None:
    """Refuse an upload that can't work, before anything is trained. Without `push_to_hub` nothing is asked.

    Raises:
        ConfigError: the id or the formats can't be.
        UserError: the Hub can't be reached, doesn't take the token, or the repository may not be written to.
    """
    if config.push_to_hub is None:
        return
    if config.formats is not None:
        pushed_format(config.formats)
    with hub_explained(_asked(config), UserError):
        _check_repository(config, _full_id(config))


def pushed_format(formats: Sequence[str]) -> str:
    """Which of the formats is uploaded.

    Raises:
        ConfigError: none of them can be.
    """
    for name in PUSHED_FORMATS:
        if name in formats:
            return name
    raise ConfigError(f"{_KEY}: uploads the hf or the adapter format; add one of them to export.formats")


def push(folder: Path, config: ExportConfig, base_name: str, again: str) -> Pushed:
    """Upload an export's files to the root of its repository as one commit, and compare what arrived.

    Args:
        folder: the export.
        config: names the repository.
        base_name: what an adapter's base model is called where it is a folder of this machine.
        again: the command that uploads without exporting anew, for messages.

    Raises:
        UserError: the Hub can't be reached or refuses.
        ExportCheckFailed: files on the Hub differ from those here.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api, files = HfApi(), _outgoing(folder, base_name)
    with hub_explained(_asked(config, again), UserError):
        repo = _full_id(config)
        private = _check_repository(config, repo)
        if private is None:
            private = config.hub_private
            api.create_repo(repo, private=private)
            say(f"{_KEY}={config.push_to_hub}: made {'private' if private else 'public'} repository {repo}")
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        try:
            done = api.create_commit(repo, operations, commit_message="Upload a model specialised by llmtune")
        except RuntimeError as error:
            if error.__cause__ is not None:  # one thread's error, told in the client's own
                raise
            raise UserError(
                f"{_KEY}={config.push_to_hub}: the upload failed ({first_line(error)}); try again: {again}"
            ) from error
        arrived = {file.path: file for file in api.get_paths_info(repo, list(files), revision=done.oid)}
    different = [name for name, content in files.items() if not _same(content, arrived.get(name))]
    if different:
        raise ExportCheckFailed(
            f"{_KEY}={config.push_to_hub}: {', '.join(different)} on the Hub differ from the export in {folder}; "
            f"upload again: {again}"
        )
    return Pushed(repo, done.oid, done.commit_url, private)


def _asked(config: ExportConfig, again: str | None = None) -> Asked:
    instead = f"leave {_KEY} out" if again is None else f"upload the finished export later with: {again}"
    return Asked(f"{_KEY}={config.push_to_hub}", str(config.push_to_hub), instead=instead, sends=True)


def _full_id(config: ExportConfig) -> str:
    """`owner/name` of the repository, its owner someone whom the token may write for.

    Raises:
        ConfigError: not an id.
        UserError: there is no token, or it may not write there.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    asked = str(config.push_to_hub)
    try:
        validate_repo_id(asked)
    except HFValidationError as error:
        raise ConfigError(
            f"{_KEY}={asked}: not a Hub id; it reads name or owner/name, in letters, digits, - _ and ."
        ) from error
    if get_token() is None:
        raise UserError(f"{_KEY}={asked}: there is no token; log in with `hf auth login`, or set HF_TOKEN")
    me = HfApi().whoami()
    owner, _, name = asked.rpartition("/")
    owner = owner or me["name"]
    token = (me.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read" or not _may_write(token, owner):
        raise UserError(f"{_KEY}={asked}: {token_place()} may only read; make one that may write")
    roles = {me["name"]: "write", **{group["name"]: group.get("roleInOrg") for group in me.get("orgs", [])}}
    if owner not in roles or roles[owner] == "read":
        allowed = ", ".join(name for name, role in roles.items() if role != "read")
        raise UserError(f"{_KEY}={asked}: you may not write for {owner}; those you may write for: {allowed}")
    return f"{owner}/{name}"


def _may_write(token: Mapping[str, Any], owner: str) -> bool:
    """Whether a token that is limited to some permissions may write for an owner; true for any other."""
    if token.get("role") != "fineGrained":
        return True
    scopes = (token.get("fineGrained") or {}).get("scoped", [])
    names = [str((scope.get("entity") or {}).get("name", "")).split("/")[0] for scope in scopes]
    return any(
        name == owner and "repo.write" in scope.get("permissions", [])
        for name, scope in zip(names, scopes, strict=True)
    )


def _check_repository(config: ExportConfig, repo: str) -> bool | None:
    """Whether the repository is private; None where there is none yet.

    Raises:
        UserError: everybody sees it, and a private one is asked for.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        private = bool(HfApi().model_info(repo).private)
    except RepositoryNotFoundError:
        return None
    if not private and config.hub_private:
        raise UserError(
            f"{_KEY}={config.push_to_hub}: {repo} is there and everybody sees it; set export.hub_private=false to add "
            "to it, or take another name"
        )
    return private


def _outgoing(folder: Path, base_name: str) -> dict[str, Path | bytes]:
    """What is uploaded, by name: the export's files; an adapter's settings without a folder of this machine."""
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "__pycache__"
    }
    if CONFIG_FILE in files:
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if Path(str(settings.get("base_model_name_or_path"))).is_absolute():
            settings["base_model_name_or_path"] = base_name
            files[CONFIG_FILE] = json.dumps(settings, indent=2, sort_keys=True).encode()
    return files


def _same(content: Path | bytes, remote: Any) -> bool:
    """Whether a file on the Hub, as it is listed there, is the one here."""
    if remote is None:
        return False
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if remote.size != size:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == _digest(content, "sha256")
    return remote.blob_id == _digest(content, "sha1", b"blob %d\0" % size)


def _digest(content: Path | bytes, algorithm: str, head: bytes = b"") -> str:
    """Hex digest of a file, after a head: with git's head and SHA-1, git's own name of the file."""
    digest = hashlib.new(algorithm, head, usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
