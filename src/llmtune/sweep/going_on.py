"""A sweep that ended before all its jobs were finished: what is left of it is run, in the jobs' own folders."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from llmtune.config.run import RunConfig
from llmtune.config.saved import first_readable, load_config, load_plain, save_config
from llmtune.errors import ConfigError, LlmtuneError, RunError
from llmtune.logs import say, silence_libraries, start_logging
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.runs.status import RunRecord, RunStatusFile, check_not_running, without_credentials
from llmtune.sweep.job import JobOutcome, SweepJob
from llmtune.sweep.jobs import settings_for
from llmtune.sweep.known_runs import known_runs
from llmtune.sweep.plan import SweepPlan, read_plan
from llmtune.sweep.run import run_sweep
from llmtune.tracking.dead_runs import mark_dead_runs
from llmtune.tracking.store import resolve_tracking_uri


def config_of_sweep(folder: RunFolder) -> dict[str, Any]:
    """The config of the sweep's first run that has one, plain: how the sweep is run and recorded.

    Raises:
        RunError: the sweep can't be read, or none of its runs can.
    """
    file = first_readable(job.folder.config_file for job in read_plan(folder).jobs)
    if file is None:
        raise RunError(
            f"{folder.path}: none of its runs has a config that can be read, so there is nothing to go on with"
        )
    return load_plain(file)


def finish_sweep(folder: RunFolder, config: RunConfig, typed_uri: str | None = None) -> int:
    """Run what is left of a sweep and say what came out of all of it.

    Args:
        folder: the sweep's folder.
        config: how it is run and recorded.
        typed_uri: tracking URI to record in from now on; None is the one of before.

    Returns:
        The exit status: 0 if every job is finished, else 1.

    Raises:
        RunError: the sweep can't be read, or another process is at work on it or on a run of it.
        ConfigError: jobs are finished, and the typed store doesn't have their runs.
    """
    plan = read_plan(folder)
    check_not_running(folder)
    for job in plan.jobs:
        check_not_running(job.folder)
    silence_libraries()
    start_logging(folder.log_file)
    uri = _tracking_uri(folder, config, plan, typed_uri)
    mark_dead_runs(folder.path.parent, uri)
    seconds = _earlier_seconds(folder)
    jobs, left, outcomes = [], [], []
    for planned in plan.jobs:
        job, outcome = _standing(planned, plan.stages, seconds)
        jobs.append(job)
        if outcome is not None:
            outcomes.append(outcome)
        else:
            left.append(job)
    if typed_uri is not None:
        _check_store_has(outcomes, uri)
        for job in left:
            _record_in(job.folder, uri)
    num_done = sum(outcome.status == "FINISHED" for outcome in outcomes)
    say(
        f"{num_done} of {len(jobs)} jobs are finished" + (f", {len(left)} to go" if left else ", nothing is left to do")
    )
    for outcome in outcomes:
        if outcome.error is not None:
            say(f"job {outcome.job.name}: {outcome.error}")
    return run_sweep(jobs, settings_for(config, folder, uri, plan.working_folder), outcomes)


def _standing(job: SweepJob, stages: Sequence[str], seconds: Mapping[str, float]) -> tuple[SweepJob, JobOutcome | None]:
    """The job as it goes on, and its outcome where it isn't to be run: it is finished, or its run can't be read."""
    folder, record = job.folder, RunStatusFile(job.folder.status_file).read()
    run_id = record.mlflow_run_id if record is not None else None
    job = replace(job, earlier_seconds=seconds.get(folder.path.name, _recorded_seconds(record)))
    if not folder.path.is_dir():
        return job, JobOutcome(job=job, status="FAILED", error=f"its run folder {folder.path} is gone")
    try:
        job = replace(job, hardware=load_config(folder.config_file).hardware)
        done = Manifest(folder.manifest_file)
        is_done = record is not None and record.status == "FINISHED" and all(map(done.stage, stages))
    except LlmtuneError as error:
        return job, JobOutcome(
            job=job, status="FAILED", seconds=job.earlier_seconds, error=str(error), mlflow_run_id=run_id
        )
    if not is_done:
        return job, None
    return job, JobOutcome(job=job, status="FINISHED", seconds=job.earlier_seconds, mlflow_run_id=run_id)


def _earlier_seconds(folder: RunFolder) -> dict[str, float]:
    """Run folder's name to wall time, as the sweep's summary has it; empty where there is none that can be read."""
    try:
        entries = json.loads(folder.summary_file.read_text(encoding="utf-8"))
        return {Path(entry["folder"]).name: float(entry["seconds"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _recorded_seconds(record: RunRecord | None) -> float:
    """Wall time of a run as its own record has it; 0 for one that never ran."""
    if record is None or record.ended_at is None:
        return 0.0
    ended, started = datetime.fromisoformat(record.ended_at), datetime.fromisoformat(record.started_at)
    return max(0.0, (ended - started).total_seconds())


def _tracking_uri(folder: RunFolder, config: RunConfig, plan: SweepPlan, typed: str | None) -> str:
    """The store as typed, seen from here; else the one of before, seen from where the sweep began."""
    if typed is not None:
        return resolve_tracking_uri(typed, Path.cwd())
    record = RunStatusFile(folder.status_file).read()
    recorded = record.tracking_uri if record is not None else None
    chosen = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or recorded
    return resolve_tracking_uri(chosen, plan.working_folder)


def _check_store_has(outcomes: Sequence[JobOutcome], uri: str) -> None:
    """Refuse a store that lacks the runs of finished jobs: the sweep would be in two halves.

    Raises:
        ConfigError: it lacks one.
    """
    store, elsewhere = without_credentials(uri), []
    for outcome in outcomes:
        record = RunStatusFile(outcome.job.folder.status_file).read()
        if outcome.status == "FINISHED" and record is not None and record.tracking_uri not in (None, store):
            elsewhere.append(record)
    ids = [record.mlflow_run_id for record in elsewhere]
    known = known_runs(uri, [run_id for run_id in ids if run_id is not None]).run_ids
    lacking = [record for record in elsewhere if record.mlflow_run_id not in known]
    if lacking:
        jobs = "1 finished job is" if len(lacking) == 1 else f"{len(lacking)} finished jobs are"
        raise ConfigError(
            f"tracking.uri={store}: {jobs} recorded in {lacking[0].tracking_uri}; leave it out, or start a new "
            "sweep without run="
        )


def _record_in(run: RunFolder, uri: str) -> None:
    """Have a run that is left to do record in another store."""
    config = load_config(run.config_file)
    save_config(replace(config, tracking=replace(config.tracking, uri=uri)), run.config_file)
