"""`hardware` to processes: the run's stages in this process, or in several under accelerate."""

import os
import subprocess
import sys
from collections.abc import Sequence

from llmtune.config.hardware import HardwareConfig
from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError
from llmtune.runs.layout import RunFolder


def launch(folder: RunFolder, config: RunConfig, stages: Sequence[str]) -> int:
    """Run the stages and return the exit status.

    Raises:
        LlmtuneError: a stage failed for a reason that its message names.
    """
    count = 1 if "RANK" in os.environ else num_processes_for(config.hardware)
    if count == 1:
        from llmtune.pipeline import run_stages

        return run_stages(folder, config, stages)
    command = launch_command(folder, stages, count)
    return subprocess.run(command, env=_environment(config.hardware), check=False).returncode


def num_processes_for(hardware: HardwareConfig) -> int:
    """How many processes a run has: one, or for `ddp` and `auto` one a visible GPU unless a number is set.

    Raises:
        ConfigError: `ddp` without a GPU and without a number.
    """
    if hardware.kind in ("cpu", "single_gpu"):
        return 1
    if hardware.num_processes is not None:
        return hardware.num_processes
    import torch

    count = torch.cuda.device_count()
    if hardware.kind == "ddp" and count == 0:
        raise ConfigError("hardware.num_processes: no GPU is visible to count; set it, e.g. hardware.num_processes=2")
    return max(1, count)


def launch_command(folder: RunFolder, stages: Sequence[str], count: int) -> list[str]:
    """The accelerate command that starts `count` workers on this machine."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    settings = ["--num_processes", str(count), "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, *settings, "--main_process_port", "0", "-m", "llmtune.worker", str(folder.path), *stages]


def _environment(hardware: HardwareConfig) -> dict[str, str]:
    """Accelerate's `--multi_gpu` starts several processes on a CPU too, once it is told to use the CPU."""
    import torch

    if torch.cuda.is_available() and hardware.kind != "cpu":
        return dict(os.environ)
    return {**os.environ, "ACCELERATE_USE_CPU": "true"}
