"""A sweep's composed configs to jobs: a run folder and a worker process each."""

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from llmtune.config.run import RunConfig
from llmtune.logs import silence_libraries, start_logging
from llmtune.runs.lookup import new_sweep_folder, start_run_folder
from llmtune.sweep.job import SweepJob, SweepSettings
from llmtune.sweep.run import run_sweep
from llmtune.tracking.store import resolve_tracking_uri


def run_sweep_of(configs: Sequence[RunConfig], overrides: Sequence[Sequence[str]], stages: Sequence[str]) -> list[int]:
    """Run the configs as a sweep.

    Args:
        configs: each job's config.
        overrides: each job's overrides, which tell the jobs apart.
        stages: the stages of each.

    Returns:
        An exit status a job: 0 where the whole sweep succeeded, else 1.
    """
    first = configs[0]
    silence_libraries()
    folder = new_sweep_folder(Path(first.runs_dir), datetime.now())
    start_logging(folder.log_file)
    tracked = first.tracking.backend == "mlflow"
    minutes = first.sweep.job_timeout_minutes
    settings = SweepSettings(
        folder=folder,
        experiment=first.tracking.experiment,
        tracking_uri=resolve_tracking_uri(first.tracking.uri, Path.cwd()) if tracked else None,
        ui_port=first.tracking.ui_port,
        job_timeout_seconds=minutes * 60 if minutes is not None else None,
    )
    differences = differing(overrides)
    jobs = [_job(config, found, stages) for config, found in zip(configs, differences, strict=True)]
    return [run_sweep(jobs, settings)] * len(jobs)


def differing(overrides: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For each job, the keys and values that aren't the same in all jobs."""
    typed = [dict(_parts(override) for override in job) for job in overrides]
    varying = [key for key in typed[0] if len({job.get(key) for job in typed}) > 1]
    return [{key: job[key] for key in varying if key in job} for job in typed]


def _parts(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def _job(config: RunConfig, differences: dict[str, str], stages: Sequence[str]) -> SweepJob:
    folder = start_run_folder(config)
    return SweepJob(
        name=" ".join(f"{key}={value}" for key, value in differences.items()) or folder.path.name,
        folder=folder,
        differences=differences,
        command=[sys.executable, "-m", "llmtune.worker", str(folder.path), *stages],
    )
