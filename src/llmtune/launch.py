"""`hardware` to processes: the run's stages in this process, or in several under accelerate."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from llmtune import distributed, process_group
from llmtune.config.hardware import HardwareConfig
from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError, LlmtuneError, PeerFailed, RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import check_not_running
from llmtune.signals import kill_all, started_by, terminable

_STOP_GRACE_SECONDS = 45.0  # the launcher gives its workers 30


def launch(folder: RunFolder, config: RunConfig, stages: Sequence[str]) -> int:
    """Run the stages and return the exit status.

    Raises:
        LlmtuneError: a stage failed for a reason that its message names; with several processes that is shown
            already, and only the exit status says so.
        PeerFailed: the launcher of several processes was killed; they end by themselves, and record it.
        RunError: another process is at work on the run.
    """
    count = 1 if "RANK" in os.environ else num_processes_for(config.hardware)
    if count == 1:
        from llmtune.pipeline import run_stages

        return run_stages(folder, config, stages)
    check_not_running(folder)
    return _run_to_end(launch_command(folder, stages, count), _environment(config.hardware))


def shared_folder(make: Callable[[], RunFolder], hardware: HardwareConfig | None = None) -> RunFolder:
    """The run folder of this process, the same for all processes that a launcher started on this command.

    Args:
        make: makes or finds the folder; called in the first process only.
        hardware: on what the processes compute; None is a GPU where there is one.

    Raises:
        LlmtuneError: what `make` raised, in the first process.
        RunError: in the others, where the first could make none.
    """
    if distributed.num_processes() == 1:
        return make()
    hardware = hardware or HardwareConfig()
    process_group.join(on_cpu=computes_on_cpu(hardware), peer_timeout_seconds=hardware.peer_timeout_seconds)
    if not distributed.is_first():
        path = process_group.from_first(None)
        if path is None:
            raise RunError("the first process has no run folder")
        return RunFolder(Path(path))
    try:
        folder = make()
    except (LlmtuneError, OSError):
        process_group.from_first(None)
        raise
    process_group.from_first(str(folder.path.absolute()))
    return folder


def count_processes(hardware: HardwareConfig) -> int:
    """How many processes the run has: as many as a launcher has started, else what `num_processes_for` says."""
    return distributed.num_processes() if "RANK" in os.environ else num_processes_for(hardware)


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
    launcher = [sys.executable, "-m", "llmtune.launcher", str(folder.path), "--multi_gpu", "--num_machines", "1"]
    settings = ["--num_processes", str(count), "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, *settings, "--main_process_port", "0", "-m", "llmtune.worker", str(folder.path), *stages]


def computes_on_cpu(hardware: HardwareConfig) -> bool:
    """Whether the run's processes compute on the CPU."""
    import torch

    return hardware.kind == "cpu" or not torch.cuda.is_available()


def _environment(hardware: HardwareConfig) -> dict[str, str]:
    """Accelerate's `--multi_gpu` starts several processes on a CPU too, once it is told to use the CPU."""
    return {**os.environ, "ACCELERATE_USE_CPU": "true"} if computes_on_cpu(hardware) else dict(os.environ)


def _run_to_end(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run the launcher; what ends this process ends it and its workers, in order, before this process goes on."""
    with terminable():
        process = subprocess.Popen(command, env=environment, process_group=0)
        try:
            status = process.wait()
        except (KeyboardInterrupt, SystemExit) as stop:
            _stop(process, signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
            raise
    if status < 0:
        raise PeerFailed(f"{signal.Signals(-status).name} ended what started the run's processes", 128 - status)
    return status


def _stop(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    workers = started_by(process)
    process.send_signal(number)
    try:
        process.wait(_STOP_GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt, SystemExit):
        process.kill()
        process.wait()
    finally:
        kill_all(workers)
