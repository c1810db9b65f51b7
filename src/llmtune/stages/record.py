"""Opens a run's record: status file and tracker."""

import json
import os
from pathlib import Path

from llmtune import distributed
from llmtune.config.run import RunConfig
from llmtune.config.validate import flatten, to_plain
from llmtune.runs.environment import git_commit
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile
from llmtune.tracking.dead_runs import mark_dead_runs
from llmtune.tracking.mlflow import PARENT_RUN_VARIABLE, SWEEP_JOB_VARIABLE, SWEEP_VARIABLE, MlflowTracker, TrackedRun
from llmtune.tracking.null import NullTracker
from llmtune.tracking.store import resolve_tracking_uri
from llmtune.tracking.tracker import Tracker


def open_tracker(folder: RunFolder, config: RunConfig) -> Tracker:
    """The run's tracker, its status file marked as running; a run that goes on stays the same MLflow run.

    Args:
        folder: the run's folder.
        config: its config.
    """
    if not distributed.is_first():
        return NullTracker()
    status = RunStatusFile(folder.status_file)
    before = status.read()
    chosen = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or (before.tracking_uri if before else None)
    uri = resolve_tracking_uri(chosen, Path.cwd()) if config.tracking.backend == "mlflow" else None
    known_id = before.mlflow_run_id if before else None
    status.start(known_id if uri else None, uri)  # from now on no other command sends what this run had kept
    if uri is None:
        mark_dead_runs(Path(config.runs_dir), uri)
        return NullTracker()
    job = json.loads(os.environ.get(SWEEP_JOB_VARIABLE, "{}"))
    run = TrackedRun(
        experiment=config.tracking.experiment,
        name=job.get("name", folder.path.name),
        sweep=os.environ.get(SWEEP_VARIABLE),
        parent_run_id=os.environ.get(PARENT_RUN_VARIABLE),
        run_id=known_id,
        tags=_tags(folder, config) | job.get("tags", {}),
    )
    tracker = MlflowTracker(uri, run, Path.cwd(), system_metrics=config.tracking.system_metrics)
    status.start(tracker.run_id or known_id, uri)
    mark_dead_runs(Path(config.runs_dir), uri, send=tracker.run_id is not None)  # a store that is away is asked once
    tracker.log_params(flatten(to_plain(config)))
    tracker.log_artifact(folder.config_file)
    return tracker


def _tags(folder: RunFolder, config: RunConfig) -> dict[str, str]:
    tags = {"method": config.method.name, "model": config.model.name, "data": config.data.source}
    tags |= {"git_commit": git_commit() or "none", "run_folder": str(folder.path)}
    sources = {"source_run": config.source_run, "source_weights": config.source_weights}
    tags |= {name: source for name, source in sources.items() if source is not None}
    return tags
