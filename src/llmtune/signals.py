"""Ends by signal: SIGTERM as an exception, and processes that are told to stop with all that they started."""

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM ended."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit status of a process that Ctrl-C ended."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit with status 143, as Ctrl-C raises KeyboardInterrupt (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    before: Callable[[int, FrameType | None], object] | int | None = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def started_by(process: subprocess.Popen[bytes]) -> Sequence[psutil.Process]:
    """Every process that `process` started, and those that they started."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """Kill those that are still there; psutil tells a process from a later one with the same number."""
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()
