"""A sweep's composed configs to jobs: a run folder and a worker process each."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from llmtune import distributed
from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError
from llmtune.logs import silence_libraries, start_logging
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import new_sweep_folder, start_run_folder
from llmtune.sweep.job import SweepJob, SweepSettings, worker_command
from llmtune.sweep.names import job_names
from llmtune.sweep.plan import SweepPlan, write_plan
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

    Raises:
        ConfigError: a launcher of several processes started this one.
    """
    if distributed.num_processes() > 1:
        raise ConfigError(
            "-m: a sweep starts each run's processes itself; start it without a launcher, and set hardware=ddp "
            "hardware.num_processes=N."
        )
    silence_libraries()
    folder = new_sweep_folder(Path(configs[0].runs_dir), datetime.now())
    start_logging(folder.log_file)
    jobs = _jobs(configs, overrides, stages)
    write_plan(folder, SweepPlan(stages=stages, working_folder=Path.cwd(), jobs=jobs))
    uri = resolve_tracking_uri(configs[0].tracking.uri, Path.cwd())
    return [run_sweep(jobs, settings_for(configs[0], folder, uri, Path.cwd()))] * len(jobs)


def settings_for(config: RunConfig, folder: RunFolder, tracking_uri: str, working_folder: Path) -> SweepSettings:
    """How a sweep is run and recorded.

    Args:
        config: the config of any of its jobs.
        folder: the sweep's folder.
        tracking_uri: absolute tracking URI; left aside where the config tracks nothing.
        working_folder: where the jobs run.
    """
    minutes = config.sweep.job_timeout_minutes
    return SweepSettings(
        folder=folder,
        experiment=config.tracking.experiment,
        tracking_uri=tracking_uri if config.tracking.backend == "mlflow" else None,
        ui_port=config.tracking.ui_port,
        job_timeout_seconds=minutes * 60 if minutes is not None else None,
        num_parallel=config.sweep.num_parallel,
        working_folder=working_folder,
        compare=config.compare,
    )


def differing(overrides: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For each job, the keys and values that aren't the same in all jobs."""
    typed = [dict(_parts(override) for override in job) for job in overrides]
    keys = dict.fromkeys(key for job in typed for key in job)
    varying = [key for key in keys if len({job.get(key) for job in typed}) > 1]
    return [{key: job[key] for key in varying if key in job} for job in typed]


def _parts(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def _jobs(configs: Sequence[RunConfig], overrides: Sequence[Sequence[str]], stages: Sequence[str]) -> list[SweepJob]:
    folders, differences = [start_run_folder(config) for config in configs], differing(overrides)
    names = job_names(differences, [folder.path.name for folder in folders])
    return [
        SweepJob(
            name=names[number],
            folder=folder,
            differences=differences[number],
            overrides=overrides[number],
            hardware=configs[number].hardware,
            command=worker_command(folder, stages),
        )
        for number, folder in enumerate(folders)
    ]
