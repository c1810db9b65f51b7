"""Runs whose process was killed before it could record its end."""

from pathlib import Path

from llmtune.logs import warn
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunState, RunStatusFile, find_dead_runs, without_credentials


def mark_dead_runs(runs_dir: Path, tracking_uri: str | None) -> list[RunFolder]:
    """Mark as KILLED, in folder and MLflow, the runs that are recorded as RUNNING by a process that is gone.

    Args:
        runs_dir: folder of the runs.
        tracking_uri: absolute tracking URI of now; a run of another store is marked there.

    Returns:
        The runs that were marked.
    """
    dead = find_dead_runs(runs_dir)
    for folder in dead:
        end_run(folder, "KILLED", "the process was killed, by hand or because memory ran out", tracking_uri)
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
    same_store = tracking_uri is not None and without_credentials(tracking_uri) == record.tracking_uri
    uri = tracking_uri if same_store and tracking_uri is not None else record.tracking_uri
    # mlflow takes a second to import, and most commands find no dead run
    from llmtune.tracking.store import open_existing_store

    try:
        client = open_existing_store(uri)
        if client is not None:
            client.set_terminated(record.mlflow_run_id, status)
    except Exception as failure:  # whatever the store raises, the command goes on
        warn(f"MLflow run {record.mlflow_run_id} could not be marked {status}: {type(failure).__name__}")
