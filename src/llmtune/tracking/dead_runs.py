"""Runs whose process was killed before it could record its end, and what a store that was away did not get."""

import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llmtune.logs import say, warn
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunRecord, RunState, RunStatusFile, find_dead_runs, without_credentials
from llmtune.tracking.entry import KEPT_FILE, Entry, TrackedRun, keep, read_kept

_DELIVERY_SECONDS = 1.0
_DELIVERY_FILE_SECONDS = 20.0


def mark_dead_runs(runs_dir: Path, tracking_uri: str | None) -> list[RunFolder]:
    """Mark as KILLED, in folder and MLflow, the runs that are recorded as RUNNING by a process that is gone.

    What runs that ended could not send to the store of now is sent, by a thread that is waited for a moment.

    Args:
        runs_dir: folder of the runs.
        tracking_uri: absolute tracking URI of now; a run of another store is marked there.

    Returns:
        The runs that were marked.
    """
    dead = find_dead_runs(runs_dir)
    for folder in dead:
        end_run(folder, "KILLED", "the process was killed, by hand or because memory ran out", tracking_uri)
    kept = [*runs_dir.glob(f"*/{KEPT_FILE}"), *runs_dir.glob(f"*/*/{KEPT_FILE}")]
    if kept and tracking_uri is not None:
        seconds = _DELIVERY_FILE_SECONDS if tracking_uri.startswith("sqlite:") else _DELIVERY_SECONDS
        delivery = threading.Thread(target=_deliver, args=(sorted(kept), tracking_uri), daemon=True)
        delivery.start()
        delivery.join(seconds)
    return dead


def end_run(folder: RunFolder, status: RunState, error: str | None, tracking_uri: str | None) -> None:
    """Record how a run ended, in its folder and in MLflow, on behalf of a process that could not.

    Args:
        folder: the run.
        status: how it ended.
        error: why it failed.
        tracking_uri: absolute tracking URI, with credentials where it needs them; a run of another store is marked
            there. MLflow is left alone where its store is away.
    """
    file = RunStatusFile(folder.status_file)
    record = file.read()
    file.end(status, error)
    if record is None or record.mlflow_run_id is None or record.tracking_uri is None:
        return
    uri = tracking_uri if tracking_uri and _is_store_of(record, tracking_uri) else record.tracking_uri
    # mlflow takes a second to import, and most commands find no dead run
    from llmtune.tracking.store import open_existing_store

    try:
        client = open_existing_store(uri)
        if client is not None:
            client.set_terminated(record.mlflow_run_id, status)
    except Exception as failure:  # whatever the store raises, the command goes on
        warn(f"MLflow run {record.mlflow_run_id} could not be marked {status}: {type(failure).__name__}")


def _deliver(kept: list[Path], tracking_uri: str) -> None:
    """Send what some runs that ended could not; the first failure leaves the rest for another time."""
    for file in kept:
        record = RunStatusFile(RunFolder(file.parent).status_file).read()
        if record is None or record.status == "RUNNING" or not _is_store_of(record, tracking_uri):
            continue
        try:
            with FileLock(file.with_name(f".{file.name}.lock"), timeout=0):
                _send_kept(file, record, tracking_uri)
        except Timeout:
            continue
        except Exception:  # the store is away: the run that begins now says so
            return


def _send_kept(file: Path, record: RunRecord, tracking_uri: str) -> None:
    from llmtune.tracking.sending import RunSender

    described, entries = read_kept(file)
    if not entries:
        return
    known = {field.name for field in fields(TrackedRun)}
    settings: dict[str, Any] = {name: value for name, value in described.items() if name in known}
    run = replace(TrackedRun(**settings), run_id=record.mlflow_run_id or described.get("run_id"))
    sender = RunSender(tracking_uri, run, Path.cwd(), was_away=True)
    if entries[-1].kind != "end":
        entries.append(Entry("end", {"status": record.status, "timestamp": None}))
    for entry in entries:
        sender.send([entry])
    keep(file, described, [])
    say(f"MLflow run {sender.run_id} got what its store had missed, {len(entries)} entries")


def _is_store_of(record: RunRecord, tracking_uri: str) -> bool:
    return without_credentials(tracking_uri) == record.tracking_uri
