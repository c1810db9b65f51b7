"""What a sweep runs: its jobs, its settings, and what became of a job."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmtune.config.compare import CompareConfig
from llmtune.config.hardware import HardwareConfig
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunState


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """One job: a process of its own that makes one run."""

    name: str
    """What the person reads; the values that differ."""
    folder: RunFolder
    """The job's run folder."""
    differences: Mapping[str, str]
    """Dotted key to value, where the jobs of the sweep differ."""
    command: Sequence[str]
    """Program and arguments."""
    overrides: Sequence[str] = ()
    """The job's overrides, in Hydra's grammar."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """On what it computes."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables on top of this process's."""
    earlier_seconds: float = 0.0
    """Wall time of its earlier processes, where the sweep was interrupted."""

    @property
    def run_name(self) -> str:
        """Name of its MLflow run: no other run of the experiment has it."""
        folder = self.folder.path.name
        return folder if self.name == folder else f"{self.name} {folder[-4:]}"


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """How the jobs of a sweep are run and recorded."""

    folder: RunFolder
    """The sweep's folder."""
    experiment: str
    """MLflow experiment's name."""
    tracking_uri: str | None = None
    """Absolute tracking URI; None tracks nothing."""
    ui_port: int = 5000
    """Port of `llmtune ui`, which the printed links point to."""
    job_timeout_seconds: float | None = None
    """Seconds after which a job is stopped and counted as failed; None is no limit."""
    stop_grace_seconds: float = 30.0
    """Seconds that a job has to save and end once it is told to, before it is killed."""
    num_parallel: int | None = None
    """Jobs at once; None is one a GPU, and one where there is none."""
    working_folder: Path | None = None
    """Where the jobs run; None is this process's."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    """How its runs are compared."""


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """What became of a job."""

    job: SweepJob
    """The job."""
    status: RunState | None
    """How it ended; None for a job that was never started."""
    seconds: float = 0.0
    """Wall time of its processes."""
    error: str | None = None
    """One line that says why it is not FINISHED."""
    mlflow_run_id: str | None = None
    """Its MLflow run."""
    timed_out: bool = False
    """Whether `sweep.job_timeout_minutes` ended it."""


def worker_command(folder: RunFolder, stages: Sequence[str]) -> list[str]:
    """The command that runs the stages of a run whose config stands in its folder."""
    return [sys.executable, "-m", "llmtune.worker", str(folder.path), *stages]
