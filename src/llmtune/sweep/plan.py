"""What a sweep is to do, as its folder keeps it, so that it can be finished by another process."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.errors import RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import write_json
from llmtune.sweep.job import SweepJob, worker_command

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep's stages and jobs."""

    stages: Sequence[str]
    """The stages of each job."""
    working_folder: Path
    """Where its jobs run."""
    jobs: Sequence[SweepJob]
    """The jobs, in order."""


def write_plan(folder: RunFolder, plan: SweepPlan) -> None:
    """Keep the plan in the sweep's folder."""
    jobs = [
        {
            "name": job.name,
            "folder": str(job.folder.path),
            "differences": dict(job.differences),
            "overrides": list(job.overrides),
        }
        for job in plan.jobs
    ]
    content = {"format_version": FORMAT_VERSION, "stages": list(plan.stages)}
    write_json(folder.sweep_file, {**content, "working_folder": str(plan.working_folder), "jobs": jobs})


def read_plan(folder: RunFolder) -> SweepPlan:
    """The plan that a sweep's folder keeps; runs that were moved or copied together with it are those beside it.

    Raises:
        RunError: there is none, or it is damaged or of a newer format.
    """
    file = folder.sweep_file
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format_version"] > FORMAT_VERSION:
            raise RunError(
                f"{file} has format version {content['format_version']}, this llmtune reads up to {FORMAT_VERSION}; "
                "use the llmtune that wrote it, or a newer one"
            )
        stages = [str(stage) for stage in content["stages"]]
        jobs = [_job(entry, stages, folder) for entry in content["jobs"]]
        return SweepPlan(stages=stages, working_folder=Path(content["working_folder"]), jobs=jobs)
    except FileNotFoundError:
        raise RunError(
            f"{folder.path} has no {file.name}: an older llmtune began it, or it ended before its first job; go on "
            "with its runs one by one, train run=RUN, or start the sweep anew"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file} is damaged ({type(error).__name__}: {error}); the sweep can't be read from it"
        ) from None


def _job(entry: dict[str, Any], stages: Sequence[str], sweep: RunFolder) -> SweepJob:
    recorded = Path(entry["folder"])
    beside = sweep.path.parent / recorded.name
    folder = RunFolder(beside if beside.is_dir() else recorded)
    return SweepJob(
        name=str(entry["name"]),
        folder=folder,
        differences={str(key): str(value) for key, value in entry["differences"].items()},
        overrides=[str(override) for override in entry["overrides"]],
        command=worker_command(folder, stages),
    )
