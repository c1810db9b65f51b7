"""One long run under a seeded series of kills, signals, outages, full disks and damages, to its end."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.metrics_log import MetricsLog
from llmtune.training.checkpoint import list_checkpoints
from store_server import StoreServer

ENDINGS = ("kill", "terminate", "interrupt", "full disk", "damage")
"""Disturbances that end the process; the run is gone on with."""
OUTAGES = ("store killed", "store hangs")
"""Disturbances through which it goes on."""
_SIGNALS = {"kill": signal.SIGKILL, "damage": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
_STATUS = {"kill": -9, "damage": -9, "terminate": 143, "interrupt": 130}
_FULL = 4096
"""Bytes past which no file grows once the disk is "full"."""
_LONGEST_SECONDS = 300.0


@dataclass
class Disturber:
    """Trains to the end in spite of everything.

    Args:
        command: trains from the start; `run=` is added to go on.
        folder: working folder of the command.
        server: the store.
        seed: of the disturbances and their moments.
        gap: steps between two disturbances at most.
    """

    command: Sequence[str]
    folder: Path
    server: StoreServer
    seed: int
    gap: int
    counts: Counter[str] = field(default_factory=Counter)
    """Disturbances by kind."""
    kills_in_save: int = 0
    """Those that came while a checkpoint was being written."""
    num_lives: int = 0
    """Processes that the run took."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._kinds: list[str] = []

    @property
    def run_folder(self) -> RunFolder | None:
        """The run's folder; None before there is one."""
        runs = list_runs(self.folder / "runs")
        return runs[0].folder if runs else None

    @property
    def steps(self) -> int:
        """Steps that the run's metrics tell of."""
        folder = self.run_folder
        losses = [] if folder is None else MetricsLog(folder.metrics_file).losses("train/loss")
        return losses[-1][0] if losses else 0

    def run_to_the_end(self) -> RunFolder:
        """Start the run, disturb it, go on, until it ends by itself.

        Raises:
            AssertionError: a process ended otherwise than its disturbance should make it end.
        """
        while self._live():
            pass
        assert self.run_folder is not None
        return self.run_folder

    def _live(self) -> bool:
        """One process of the run; whether another must follow."""
        self.num_lives += 1
        going_on = [] if self.run_folder is None else [f"run={self.run_folder.path}"]
        with (self.folder / f"life-{self.num_lives}.txt").open("w") as output:
            process = subprocess.Popen(
                [*self.command, *going_on], cwd=self.folder, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            while self._wait_for(process, self.steps + self._random.randint(1, self.gap)):
                kind = self._next_kind()
                if kind in OUTAGES:
                    self._take_the_store_away(process, kind)
                    continue
                if self._end(process, kind):
                    return True
            self.server.bring_back()
            return self._ended(process, "undisturbed", 0)
        finally:
            self.server.bring_back()
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def _next_kind(self) -> str:
        """Each kind once in a random order, then again in another."""
        if not self._kinds:
            self._kinds = [*ENDINGS, *OUTAGES, "kill", "kill"]
            self._random.shuffle(self._kinds)
        return self._kinds.pop()

    def _wait_for(self, process: subprocess.Popen[bytes], step: int) -> bool:
        """Wait until the run's metrics tell of `step`, and a moment more; whether the process still runs then."""
        deadline = time.monotonic() + _LONGEST_SECONDS
        while process.poll() is None and self.steps < step:
            assert time.monotonic() < deadline, f"no step {step} in life {self.num_lives}: {self._said()}"
            time.sleep(0.02)
        time.sleep(self._random.uniform(0, 0.2))
        return process.poll() is None

    def _take_the_store_away(self, process: subprocess.Popen[bytes], kind: str) -> None:
        self.counts[kind] += 1
        if kind == "store killed":
            self.server.kill()
        else:
            self.server.hang()
        self._wait_for(process, self.steps + self._random.randint(1, self.gap))
        self.server.bring_back()

    def _end(self, process: subprocess.Popen[bytes], kind: str) -> bool:
        """End the process; whether the run must be gone on with."""
        if kind == "full disk":
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (_FULL, _FULL))
            status = 1
        else:
            if kind in ("kill", "damage"):
                self._wait_for_a_save()
            process.send_signal(_SIGNALS[kind])
            status = _STATUS[kind]
        process.wait(_LONGEST_SECONDS)
        if process.returncode == 0:  # it had just ended by itself
            return False
        self.counts[kind] += 1
        self.kills_in_save += kind in ("kill", "damage") and bool(self._half_saved())
        if kind == "damage":
            self._damage_the_newest()
        return self._ended(process, kind, status)

    def _ended(self, process: subprocess.Popen[bytes], kind: str, status: int) -> bool:
        process.wait(_LONGEST_SECONDS)
        assert process.returncode == status, f"{kind}: exit status {process.returncode}: {self._said()}"
        assert "Traceback" not in self._said(), f"{kind}: {self._said()}"
        return status != 0

    def _wait_for_a_save(self) -> None:
        """Every second time, until a checkpoint is being written; a second at most."""
        deadline = time.monotonic() + self._random.choice((0.0, 1.0))
        while time.monotonic() < deadline and not self._half_saved():
            time.sleep(0.0005)

    def _half_saved(self) -> list[Path]:
        return [] if self.run_folder is None else list(self.run_folder.checkpoints.glob(".checkpoint-*.tmp"))

    def _damage_the_newest(self) -> None:
        """Cut or alter a file of the newest checkpoint, where there is one before it to fall back to."""
        checkpoints = [] if self.run_folder is None else list_checkpoints(self.run_folder.checkpoints)
        if len(checkpoints) < 2:
            return
        files = sorted(path for path in checkpoints[-1].iterdir() if path.is_file())
        file = self._random.choice(files)
        content = bytearray(file.read_bytes())
        if self._random.random() < 0.5 or not content:
            file.write_bytes(content[: len(content) // 2])
            return
        content[self._random.randrange(len(content))] ^= 0x55
        file.write_bytes(content)

    def _said(self) -> str:
        return (self.folder / f"life-{self.num_lives}.txt").read_text()[-3000:]


def fresh_folder(path: Path) -> Path:
    """An empty folder at `path`."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def llmtune(*words: str) -> list[str]:
    """The command line that runs llmtune with `words`."""
    return [sys.executable, "-m", "llmtune", *words]


def environment() -> dict[str, str]:
    """What every process of the soak runs with: one thread, no proxy before the store, this source."""
    source = str(Path(__file__).parents[2] / "src")
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1"}
