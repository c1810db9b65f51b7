"""Training in turn: each contender is a process that trains some steps when it is told to and waits meanwhile."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from bench_train_work import Work

_ENDED = "ended"
_LAST_LINES, _LAST_LETTERS = 3, 300


@dataclass(frozen=True)
class Step:
    """What a contender knows of a step that it has just made."""

    tokens: int
    """Without padding."""
    positions: int
    """With padding."""
    loss: Callable[[], float]
    """Nats per supervised token; asked for at the end of a turn, since it may wait for the device."""
    batches: Sequence[list[int]] = ()
    """`identity` of each of its batches, where it is known."""


class Wire:
    """How a contender tells its driver something, and hears what to do; what libraries print goes to stderr."""

    def __init__(self) -> None:
        self._told = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self.waited_seconds = 0.0
        """For the driver's words."""

    def tell(self, event: str, **content: object) -> None:
        """Tell the driver one thing."""
        print(json.dumps({"event": event, **content}), file=self._told)

    def wait_for(self, order: str) -> None:
        """Wait until the driver gives this order; any other ends the process, as does the driver's end."""
        started = time.perf_counter()
        if sys.stdin.readline().strip() != order:
            os._exit(0)  # nothing that is made here is wanted
        self.waited_seconds += time.perf_counter() - started


class Turns:
    """Follows a contender's steps: tells what warming up took, then trains turn by turn when it is its turn.

    Args:
        wire: to the driver.
        work: says how many steps. On a GPU a turn has one more before those that are measured, as the memory that was
            given back in between has to be had again.
        facts: told once, when it has warmed up; may still change until then. `first_loss` is the first step's where
            it isn't given, or where the first step has just the examples of `first`.
        first: `identity` of the examples that the contenders' losses are compared on.
    """

    def __init__(self, wire: Wire, work: Work, facts: dict[str, Any], first: list[int]) -> None:
        self._wire, self._steps, self._facts, self._first = wire, work.steps, facts, first
        self._left, self._settling = work.warmup, 0
        self._made: list[Step] = []
        self._first_seconds: float | None = None
        self._turn = 0
        self._not_counted = 0.0
        self._started = time.perf_counter()

    def step_done(self, step: Step) -> None:
        """Called after every step, with all of it done but what the device still computes."""
        if self._first_seconds is None:
            synchronize()
            seconds = time.time() - psutil.Process().create_time()
            self._first_seconds = seconds - self._wire.waited_seconds - self._not_counted
            if "first_loss" not in self._facts or list(step.batches) == [self._first]:
                self._facts |= {"first_loss": step.loss(), "first_loss_note": None}
        if self._settling:
            self._settling -= 1
            if not self._settling:
                self._start_clock()
            return
        self._made.append(step)
        self._left -= 1
        if self._left == 0:
            self._finish()

    @contextlib.contextmanager
    def not_counted(self) -> Iterator[None]:
        """What is done within it before the first step is no part of the time until then."""
        started = time.perf_counter()
        yield
        self._not_counted += time.perf_counter() - started

    def _start_clock(self) -> None:
        synchronize()
        reset_peak()
        self._started = time.perf_counter()

    def _finish(self) -> None:
        synchronize()
        seconds = time.perf_counter() - self._started
        peak = peak_bytes()
        made, self._made = self._made, []
        told = {
            "seconds": seconds,
            "steps": len(made),
            "tokens": sum(step.tokens for step in made),
            "positions": sum(step.positions for step in made),
            "loss": sum(step.loss() for step in made) / len(made),
            "peak_bytes": peak,
        }
        if self._turn == 0:
            self._wire.tell("ready", **self._facts, start_seconds=self._first_seconds, **_compiling(), warmup=told)
        else:
            self._wire.tell("turn", **told)
        self._turn += 1
        give_back_memory()
        self._wire.wait_for("go")
        self._left, self._settling = self._steps, int(_on_gpu())
        self._start_clock()


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def synchronize() -> None:
    """Wait until the device has done everything."""
    if _on_gpu():
        import torch

        torch.cuda.synchronize()


def reset_peak() -> None:
    """Count the most memory from now on."""
    if _on_gpu():
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # not every system lets a process do so; it is then the peak from the start
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory since `reset_peak`: allocated on a GPU, else resident of this process."""
    if _on_gpu():
        import torch

        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def give_back_memory() -> None:
    """Leave the GPU to the others."""
    if _on_gpu():
        import torch

        torch.cuda.empty_cache()


def _compiling() -> dict[str, float]:
    """Seconds that torch has compiled so far, in a process that has compiled."""
    if "torch._dynamo.utils" not in sys.modules:
        return {"compile_seconds": 0.0}
    from torch._dynamo.utils import calculate_time_spent

    return {"compile_seconds": float(calculate_time_spent().get("total_wall_time", 0.0))}


class ContenderError(Exception):
    """A contender is out, for the reason that the message names."""


class Contender:
    """A contender's process, as the driver sees it.

    Args:
        name: its name.
        command: what starts it.
        environment: its environment.
        folder: where it works; what it prints goes to a file there.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name, self._log = name, folder / f"{name}.log"
        with self._log.open("w", encoding="utf-8") as printed:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                text=True,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
            )
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._heard.put(json.loads(line))
        self._heard.put({"event": _ENDED})

    def order(self, order: str) -> None:
        """Tell it something; one that has ended shows in what is heard next."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError):
            stdin.write(f"{order}\n")
            stdin.flush()

    def hear(self, event: str, limit_seconds: float) -> dict[str, Any]:
        """What it tells next.

        Raises:
            ContenderError: it failed, ended or took longer; it has ended now.
        """
        try:
            told = self._heard.get(timeout=limit_seconds)
        except queue.Empty:
            self.end()
            raise ContenderError(f"stopped: not {event} within {limit_seconds:.0f} s") from None
        if told.pop("event") == event:
            return told
        self.end()
        status = self._process.returncode
        raise ContenderError(told.get("error") or f"ended by itself, status {status}: {self._last_lines()}")

    def end(self) -> None:
        """End it with all that it started."""
        self.order("end")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with contextlib.suppress(ProcessLookupError):  # its group is gone with it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _last_lines(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()  # a bar's states are lines too
        return " | ".join(filter(None, map(str.strip, lines[-_LAST_LINES:])))[-_LAST_LETTERS:]
