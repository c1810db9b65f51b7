"""Ends by signal: as an exception, or noted until work is whole; and processes told to stop with all they started."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM ended."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit status of a process that Ctrl-C ended."""
ENDING = (signal.SIGTERM, signal.SIGINT)
"""The signals that ask a process to end."""

_ECHO_SECONDS = 0.5
_Handler = Callable[[int, FrameType | None], object] | int | None


class Unfinished(Exception):
    """Work was left where it was, since a signal asks for the end of the process, or of one that it works with.

    Args:
        number: the signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class _Noted:
    """What `finishing` has noted in this process."""

    number: signal.Signals | None = None
    since: float = 0.0


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit with status 143, as Ctrl-C raises KeyboardInterrupt (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        end_as(number)

    before: _Handler = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def finishing(tell: Callable[[signal.Signals], None] | None = None) -> Iterator[None]:
    """Within it the first SIGTERM or Ctrl-C is noted, for the work to end where it is whole; a second ends it at once.

    What comes within half a second of the first is its echo: a job scheduler signals every process of a job, and a
    launcher then passes it on. Main thread only; elsewhere signals do what they did before.

    Args:
        tell: called once with the noted signal, in a thread of its own, as the signal may have come while a line was
            being written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if _Noted.number is None:
            _Noted.number, _Noted.since = signal.Signals(number), now
            if tell is not None:
                threading.Thread(target=tell, args=(_Noted.number,), daemon=True).start()
        elif now - _Noted.since > _ECHO_SECONDS:
            end_as(number)

    heeded = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before: dict[signal.Signals, _Handler] = {number: signal.signal(number, note) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _Noted.number = None


def asked_to_stop() -> signal.Signals | None:
    """The signal that `finishing` has noted; None where there is none, and outside of it."""
    return _Noted.number


def stop_flags() -> list[float]:
    """1 for each of `ENDING` that was noted here, else 0: added up over processes they are what `flagged` takes."""
    return [float(_Noted.number is number) for number in ENDING]


def flagged(flags: Sequence[float]) -> signal.Signals | None:
    """The signal that any process has noted, the first of `ENDING` where they differ."""
    return next((number for number, flag in zip(ENDING, flags, strict=True) if flag), None)


def end_as(number: int) -> NoReturn:
    """Raise what the signal raises where nothing notes it: KeyboardInterrupt for Ctrl-C, else SystemExit."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


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
