"""What a run talks to: the MLflow store and the Hugging Face Hub. No token and no password is shown."""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from llmtune.commands.env_disk import nearest_folder, why_unwritable
from llmtune.commands.env_finding import Finding, Places
from llmtune.errors import ConfigError
from llmtune.runs.status import without_credentials

STORE_SECONDS = 3.0
_SQLITE = "sqlite:///"
_EXISTING_EXPERIMENT = "Default"


def check_store(places: Places) -> Finding:
    """The MLflow store: where it is, whether it answers within 3 s and may be written to."""
    from llmtune.tracking.store import resolve_tracking_uri

    typed = without_credentials(places.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "")
    try:
        uri = resolve_tracking_uri(places.tracking_uri, Path.cwd())
    except ConfigError as error:
        return Finding([("MLflow", typed)], [without_credentials(str(error))])
    shown = without_credentials(uri)
    if uri.startswith(_SQLITE):
        state, problem = _sqlite_state(Path(uri.removeprefix(_SQLITE).split("?", 1)[0]))
    else:
        state, problem = "reachable", None
    if problem is None and not state.startswith("not made"):
        problem = within(STORE_SECONDS, lambda: why_unusable(uri), prepare=_import_mlflow)
    finding = Finding([("MLflow", f"{shown}, {'not usable' if problem else state}")])
    if problem is not None:
        finding.problems.append(
            f"the MLflow store {shown} can't be used: {without_credentials(problem)}; start or mend it, set "
            "tracking.uri to another, or tracking.backend=none"
        )
    return finding


def why_unusable(uri: str) -> str | None:
    """Why a run couldn't record to this store; None where it could. Nothing is changed there."""
    from llmtune.tracking.client import MlflowClient, MlflowException
    from llmtune.tracking.store import store_answers

    if not store_answers(uri):
        return "nothing listens there"
    try:
        client = MlflowClient(uri)
        if client.get_experiment_by_name(_EXISTING_EXPERIMENT) is None:
            return None
        client.create_experiment(_EXISTING_EXPERIMENT)  # refused where it may be written to: the name is taken
    except MlflowException as error:
        taken = error.error_code == "RESOURCE_ALREADY_EXISTS"
        return None if taken else str(error).strip().splitlines()[0][:200]
    return None


def within(seconds: float, ask: Callable[[], str | None], prepare: Callable[[], Any]) -> str | None:
    """What `ask` answers, or that it took too long; an exception in words.

    Args:
        seconds: how long it may take.
        ask: the question; it is left behind where it takes longer.
        prepare: done before the time begins.
    """
    answer: list[str | None] = []

    def work() -> None:
        try:
            answer.append(ask())
        except Exception as error:  # whatever a store's library raises
            answer.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:200])

    prepare()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"no answer within {seconds:g} s"


def check_hub(places: Places) -> Finding:
    """Whether a token is set, whether the Hub is asked at all, and where its files are kept."""
    from huggingface_hub import constants, get_token

    offline = is_offline()
    home, cache = Path(constants.HF_HOME), Path(constants.HF_HUB_CACHE)
    there = [path for kind in ("models--*", "datasets--*") for path in cache.glob(kind)]
    finding = Finding(
        [
            ("Hub token", "set" if get_token() else "not set (only gated and private models need one)"),
            ("Hub", "off: HF_HUB_OFFLINE is set" if offline else "asked where a model or data set is named by its id"),
            ("HF_HOME", f"{home}, {len(there)} models and data sets"),
        ]
    )
    if offline and not there:
        finding.problems.append(
            f"HF_HUB_OFFLINE is set and there is nothing in {cache}, so no model can be named by its Hub id; unset it, "
            "or set HF_HOME to a folder with models"
        )
    return finding


def is_offline() -> bool:
    """Whether the environment forbids asking the Hub."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _import_mlflow() -> None:
    import llmtune.tracking.client  # noqa: F401


def _sqlite_state(file: Path) -> tuple[str, str | None]:
    """How a SQLite store stands, and why it can't be used."""
    if not file.exists() or not file.stat().st_size:
        refusal = why_unwritable(nearest_folder(file.parent))
        return "not made yet, the first run makes it", f"{file.parent}: {refusal}" if refusal else None
    try:
        with closing(sqlite3.connect(file, timeout=STORE_SECONDS, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return "", str(error)
    return f"writable, {file.stat().st_size / 1e6:.1f} MB", None
