"""Hydra's part of a sweep: composes every job's config and hands them to llmtune, which runs a process a job.

The module stands in Hydra's own namespace package because Hydra takes launchers from nowhere else. Hydra imports it at
every start, so it imports nothing heavy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ProcessLauncherConf:
    """The launcher's entry in the config."""

    _target_: str = "hydra_plugins.llmtune_launcher.ProcessLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf, provider="llmtune")


class ProcessLauncher(Launcher):
    """Passes all jobs of a batch, composed, to the task function in one call."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self._context = hydra_context
        self._task_function: Any = task_function
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose each job and run the batch; a job's return value is its exit status."""
        configs = []
        for overrides in job_overrides:
            configs.append(self._context.config_loader.load_sweep_config(self._config, list(overrides)))
        statuses = self._task_function.run_jobs(configs, [list(overrides) for overrides in job_overrides])
        returns = []
        for overrides, status in zip(job_overrides, statuses, strict=True):
            result = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            result.return_value = status
            returns.append(result)
        return returns
