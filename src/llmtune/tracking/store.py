"""The MLflow store: where it is, whether it answers, and making a new one safely."""

import os
import socket
import sqlite3
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from filelock import FileLock

from llmtune.credentials import has_late_at
from llmtune.errors import ConfigError
from llmtune.runs.status import without_credentials

if TYPE_CHECKING:
    from llmtune.tracking.client import MlflowClient

_SQLITE = "sqlite:///"
_OTHERS = ("https", "postgresql", "mysql", "mssql", "databricks")
_SCHEMES = ("sqlite", "http", *_OTHERS)
_LOCK_TIMEOUT_SECONDS = 60
_CONNECT_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class Store:
    """An MLflow store that was reached, and the experiment in it."""

    client: "MlflowClient"
    experiment_id: str


def resolve_tracking_uri(configured: str | None, working_folder: Path) -> str:
    """The tracking URI that a run uses, absolute.

    Args:
        configured: `tracking.uri`; None is MLFLOW_TRACKING_URI, else `mlflow.db` in the working folder.
        working_folder: what a relative SQLite path starts from.

    Raises:
        ConfigError: it is a folder, which MLflow no longer writes to, or can never be a store.
    """
    from_environment = os.environ.get("MLFLOW_TRACKING_URI")
    uri = configured or from_environment or f"{_SQLITE}mlflow.db"
    key = "MLFLOW_TRACKING_URI" if uri == from_environment else "tracking.uri"
    if has_late_at(uri):
        raise ConfigError(
            f"{key}: has an @ behind its host, where a password may end; write / in a password as %2F, other @ as %40"
        )
    shown = without_credentials(uri)
    problem = _why_malformed(uri)
    if problem is not None:
        raise ConfigError(
            f"{key}={shown}: {problem}; set it to {_SQLITE}FILE, http://HOST:PORT, or an address that begins with "
            f"{', '.join(_OTHERS[:-1])} or {_OTHERS[-1]}"
        )
    if uri == "databricks" or urlsplit(uri).scheme not in ("", "file", "sqlite"):
        return uri
    if not uri.startswith(_SQLITE):
        folder = shown.removeprefix("file://")
        raise ConfigError(
            f"{key}={shown} is a folder, which MLflow no longer writes to; set {_SQLITE}{folder}/mlflow.db"
        )
    absolute = _SQLITE + str(working_folder.absolute() / uri.removeprefix(_SQLITE))
    if _sqlite_file(absolute).is_dir():
        raise ConfigError(f"{key}={shown}: is a folder; name a file in it, such as {shown.rstrip('/')}/mlflow.db")
    return absolute


def _why_malformed(uri: str) -> str | None:
    """Why this can never be a tracking URI; None where it can."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        return without_credentials(str(error)).lower()
    scheme = parts.scheme.partition("+")[0]
    if scheme not in (*_SCHEMES, "", "file"):
        return f"{scheme} is no kind of MLflow store"
    if scheme == "sqlite" and not uri.startswith((_SQLITE, "sqlite+")):
        return "a SQLite store has three slashes"
    if uri.startswith(_SQLITE) and not parts.path.strip("/"):
        return "it names no file"
    if scheme in ("http", "https") and not parts.hostname:
        return "it names no host"
    return None


def store_answers(uri: str) -> bool:
    """Whether something listens where an http store should be, asked for 2 s.

    True for every other kind of store, and for a server behind an http proxy, which can't be asked directly.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return True
    if parts.scheme in getproxies() and not proxy_bypass(parts.netloc.rpartition("@")[2]):
        return True
    address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    try:
        with socket.create_connection(address, timeout=_CONNECT_TIMEOUT_SECONDS):
            return True
    except OSError:
        return False


def check_store(uri: str) -> None:
    """Return where the store can be written to, as far as it can be told within 2 s and without a request of MLflow's.

    Raises:
        ConnectionError: nothing listens there.
        FileNotFoundError: the SQLite file's folder isn't there.
        sqlite3.Error: the file is no SQLite store, is locked by another program, or can't be written.
    """
    if not store_answers(uri):
        raise ConnectionError(f"nothing listens at {without_credentials(uri)}")
    file = _sqlite_file(uri)
    if uri.startswith(_SQLITE) and not file.parent.is_dir():
        raise FileNotFoundError(f"{file.parent} isn't there")
    if not uri.startswith(_SQLITE) or not file.exists():
        return
    with closing(sqlite3.connect(file, timeout=_CONNECT_TIMEOUT_SECONDS, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def open_store(uri: str, experiment: str, working_folder: Path) -> Store:
    """Reach the store and find or make the experiment in it; one process at a time makes a fresh SQLite store.

    Args:
        uri: absolute tracking URI, from `resolve_tracking_uri`.
        experiment: MLflow experiment's name.
        working_folder: gets `mlartifacts` for a store that is neither a SQLite file nor a server.

    Raises:
        ConfigError: the experiment was deleted in that store.
        ConnectionError: nothing listens there.
        MlflowException: the store can't be used.
    """
    from llmtune.tracking.client import MlflowClient  # takes a second to import

    with _creation_lock(uri):
        check_store(uri)
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            location = _artifact_location(uri, working_folder)
            return Store(client, client.create_experiment(experiment, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"tracking.experiment={experiment} was deleted in {without_credentials(uri)}; set another name, or "
            f"restore it: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return Store(client, found.experiment_id)


def open_existing_store(uri: str) -> "MlflowClient | None":
    """A client of a store that is there; None where the SQLite file is missing or no server listens.

    Args:
        uri: absolute tracking URI.
    """
    if uri.startswith(_SQLITE) and not _sqlite_file(uri).exists():
        return None
    if not store_answers(uri):
        return None
    from llmtune.tracking.client import MlflowClient  # takes a second to import

    return MlflowClient(uri)


def _creation_lock(uri: str) -> AbstractContextManager[object]:
    if not uri.startswith(_SQLITE):
        return nullcontext()
    path = _sqlite_file(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_TIMEOUT_SECONDS)


def _artifact_location(uri: str, working_folder: Path) -> str | None:
    if uri.startswith(("http://", "https://", "databricks")):
        return None
    folder = _sqlite_file(uri).parent if uri.startswith(_SQLITE) else working_folder.absolute()
    return (folder / "mlartifacts").as_uri()


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE).split("?", 1)[0])
