"""Runs of two processes with many steps before them, started as a person would, for a test to hurt."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile

from .conftest import ASSETS, SHORT, Workplace

TWO = ["hardware=ddp", "hardware.num_processes=2"]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2"],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ],
}


@dataclass
class LongRun:
    """A run that goes on by itself."""

    process: subprocess.Popen[str]
    """What was started: the command, or a launcher."""
    runs_dir: Path

    def wait_for(self, pattern: str) -> None:
        """Wait until its folder has such a file, with something in it, or such a folder."""
        wait_for(self.process, self.runs_dir, pattern)

    @property
    def folder(self) -> RunFolder:
        """Its run folder."""
        (path,) = self.runs_dir.iterdir()
        return RunFolder(path)

    @property
    def state(self) -> tuple[str, str]:
        """Its status, and why it has that."""
        record = RunStatusFile(self.folder.status_file).read()
        assert record is not None
        return record.status, record.error or ""

    @property
    def launcher(self) -> psutil.Process:
        """What started its processes."""
        record = RunStatusFile(self.folder.status_file).read()
        launcher = psutil.Process(record.pid).parent() if record else None
        assert launcher is not None
        return launcher

    @property
    def workers(self) -> dict[str, psutil.Process]:
        """Its processes by rank."""
        return {one.environ()["RANK"]: one for one in self.launcher.children()}

    @property
    def started(self) -> list[psutil.Process]:
        """Every process of it but the first."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, seconds: float) -> tuple[int, str]:
        """Wait for its end: the exit status, and what it wrote to standard error."""
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors


def start_long(workplace: Workplace, *more: str, launcher: str | None = None, runs_dir: str = "runs") -> LongRun:
    """Start one in two processes; under a launcher of the person's choice where one is named."""
    words = [*SHORT, f"model={ASSETS / 'tiny_llama'}", f"data.path={ASSETS / 'examples.jsonl'}"]
    words += [f"cache_dir={workplace.folder / 'cache'}", f"runs_dir={runs_dir}", "tracking.backend=none"]
    words += ["train", "train.num_epochs=3000", *more]
    start = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "llmtune"] if launcher else None
    command = [*(start or [sys.executable, "-m", "llmtune", *TWO]), *words]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return LongRun(process, workplace.folder / runs_dir)


def wait_for(process: subprocess.Popen[Any], runs_dir: Path, pattern: str) -> None:
    """Wait until the only run in `runs_dir` has such a file, with something in it, or such a folder."""
    deadline = time.monotonic() + 150
    while not any(path.stat().st_size for path in runs_dir.glob(f"*/{pattern}")):
        assert process.poll() is None, "the run ended"
        assert time.monotonic() < deadline, f"there is no {pattern}"
        time.sleep(0.05)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are still there."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
