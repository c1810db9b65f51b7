"""Runs whose process was killed before it could record its end, and what a store that was away did not get."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from llmtune.logs import logger, say, warn
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import is_sweep_folder
from llmtune.runs.status import (
    PROCESS_GONE,
    RunRecord,
    RunState,
    RunStatusFile,
    find_dead_runs,
    last_sign_of_life,
    without_credentials,
)
from llmtune.tracking.entry import KEPT_FILE, Entry, TrackedRun, first_batch
from llmtune.tracking.kept_file import KeptFile, read_kept

if TYPE_CHECKING:
    from llmtune.tracking.sending import RunSender

_SERVER_SECONDS = 1.0
_FILE_SECONDS = 20.0


def mark_dead_runs(runs_dir: Path, tracking_uri: str | None, *, send: bool = True) -> list[RunFolder]:
    """Mark as KILLED, in folder and MLflow, the runs that are recorded as RUNNING by a process that is gone.

    What runs that ended could not send is sent too, by a thread that is waited for a moment. mlflow, which takes a
    second to import, is needed only where there is something to send.

    Args:
        runs_dir: folder of the runs.
        tracking_uri: absolute tracking URI of now, with credentials where it needs them; None is MLFLOW_TRACKING_URI. A
            run of another store is marked there.
        send: whether to reach for MLflow; without it the next command does.

    Returns:
        The runs that were marked.
    """
    dead = find_dead_runs(runs_dir)
    for folder in dead:
        RunStatusFile(folder.status_file).end("KILLED", PROCESS_GONE, last_sign_of_life(folder))
    kept = [RunFolder(file.parent) for pattern in ("*", "*/*") for file in runs_dir.glob(f"{pattern}/{KEPT_FILE}")]
    if send:
        folders = {folder.path: folder for folder in (*dead, *kept)}.values()
        _send(sorted(folders, key=lambda folder: (not is_sweep_folder(folder.path), folder.path)), tracking_uri)
    return dead


def end_run(folder: RunFolder, status: RunState, error: str | None, tracking_uri: str | None) -> None:
    """Record how a run ended, in its folder and in MLflow, on behalf of a process that could not.

    Args:
        folder: the run.
        status: how it ended.
        error: why it failed.
        tracking_uri: as for `mark_dead_runs`.
    """
    RunStatusFile(folder.status_file).end(status, error)
    _send([folder], tracking_uri)


def _send(folders: Sequence[RunFolder], tracking_uri: str | None) -> None:
    """Bring the runs' ends to their stores; a store that doesn't answer is left behind, for another time."""
    recorded = [(folder, RunStatusFile(folder.status_file).read()) for folder in folders]
    tracked = [
        (folder, record, _uri_of(record, tracking_uri))
        for folder, record in recorded
        if record is not None and record.status != "RUNNING" and record.tracking_uri is not None
    ]
    if not tracked:
        return
    sending = threading.Thread(target=_send_each, args=(tracked,), name="llmtune-catch-up", daemon=True)
    sending.start()
    sending.join(_FILE_SECONDS if any(uri.startswith("sqlite:") for _, _, uri in tracked) else _SERVER_SECONDS)


def _send_each(tracked: Sequence[tuple[RunFolder, RunRecord, str]]) -> None:
    away: set[str] = set()
    for folder, record, uri in tracked:
        if uri in away:
            continue
        try:
            _send_one(folder, record, uri)
        except Exception as error:  # whatever the store raises, the command goes on
            away.add(uri)
            logger.info(f"{folder.path} has entries for {without_credentials(uri)}: {type(error).__name__}")


def _send_one(folder: RunFolder, record: RunRecord, uri: str) -> None:
    file = folder.path / KEPT_FILE
    if not file.exists():
        _terminate(record, uri)
        return
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        with lock.acquire(timeout=0):
            _send_kept(folder, record, uri)
            Path(lock.lock_file).unlink(missing_ok=True)  # nobody waits for it: who finds it taken goes on
    except Timeout:
        return


def _send_kept(folder: RunFolder, record: RunRecord, uri: str) -> None:
    """Send what a run's file holds, and its end; a run that goes on meanwhile sends the rest itself."""
    kept = KeptFile(folder.path / KEPT_FILE)
    described, waiting = read_kept(kept.path)
    if not described:
        return
    sender = _sender(described, record, uri)
    entries = [entry for entry in waiting if entry.kind != "end"]
    num_missed = len(entries)
    entries.append(Entry("end", {"status": record.status, "timestamp": _milliseconds(record.ended_at)}))
    kept.begin(described, entries)
    while entries:
        batch = first_batch(entries)
        if _is_running(folder):
            return
        sender.send(batch)
        kept.count_sent(len(batch))
        del entries[: len(batch)]
    if _is_running(folder):
        return
    kept.remove()
    if sender.run_id is not None:
        RunStatusFile(folder.status_file).link(sender.run_id)
    if num_missed:
        say(f"MLflow run {sender.run_id} ({folder.path.name}) got the {num_missed} entries that its store had missed")


def _sender(described: Mapping[str, Any], record: RunRecord, uri: str) -> "RunSender":
    from llmtune.tracking.store import check_store

    check_store(uri)
    from llmtune.tracking.sending import RunSender

    known = {field.name for field in fields(TrackedRun)}
    run = TrackedRun(**{name: value for name, value in described.items() if name in known})
    return RunSender(uri, replace(run, run_id=record.mlflow_run_id or run.run_id), Path.cwd(), was_away=True)


def _terminate(record: RunRecord, uri: str) -> None:
    """End the MLflow run of a run that left nothing else to send."""
    from llmtune.tracking.store import open_existing_store

    if record.mlflow_run_id is None:
        return
    try:
        client = open_existing_store(uri)
        if client is not None:
            client.set_terminated(record.mlflow_run_id, record.status, end_time=_milliseconds(record.ended_at))
    except Exception as error:  # whatever the store raises, the command goes on
        warn(f"MLflow run {record.mlflow_run_id} could not be marked {record.status}: {type(error).__name__}")


def _is_running(folder: RunFolder) -> bool:
    record = RunStatusFile(folder.status_file).read()
    return record is not None and record.status == "RUNNING"


def _milliseconds(time: str | None) -> int | None:
    return int(datetime.fromisoformat(time).timestamp() * 1000) if time else None


def _uri_of(record: RunRecord, tracking_uri: str | None) -> str:
    """The store that a run is recorded in; the one of now where they are the same, since that has the credentials."""
    recorded, now = record.tracking_uri or "", tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return now if without_credentials(now) == recorded else recorded
