"""Ends by signal: as an exception, or noted until work is whole; and processes told to stop with all they started."""

import os
import signal
import subprocess
import sys
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
HUNG_UP = 128 + signal.SIGHUP
"""Exit status of a process whose terminal is gone."""
ENDED_BY = {TERMINATED: "terminated", INTERRUPTED: "interrupted", HUNG_UP: "hung up"}
"""Exit status to what a signal did, in a word."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that ask a process to end."""

_ECHO_SECONDS = 0.5
_ONCE_MORE_SECONDS = 0.05
_SECONDS_BETWEEN_LOOKS = 0.5
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
    twice: bool = False


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise SystemExit with status 143 and 129, as Ctrl-C raises KeyboardInterrupt.

    Python drops an exception that rises where nothing can catch it, as in a callback of a weak reference; a signal
    whose exception was lost so is sent again. What was ignored before, as SIGHUP under nohup, stays so. Main thread
    only.
    """
    _Noted.twice = False
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        end_as(number)

    hook = sys.unraisablehook

    def once_more(lost: "sys.UnraisableHookArgs") -> None:
        number = _number_of(lost.exc_value)
        if number is None:
            hook(lost)
        else:
            threading.Timer(_ONCE_MORE_SECONDS, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = once_more
    try:
        with _handled_by(terminate, [signal.SIGTERM, signal.SIGHUP]):
            yield
    finally:
        sys.unraisablehook = hook


@contextmanager
def finishing(tell: Callable[[signal.Signals], None] | None = None) -> Iterator[None]:
    """Within it the first of `ENDING` is noted, for the work to end where it is whole; a second ends it at once.

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
            _Noted.twice = True
            end_as(number)

    try:
        with _handled_by(note, ENDING):
            yield
    finally:
        _Noted.number = None


@contextmanager
def unbroken() -> Iterator[None]:
    """Within it a signal is noted, and raised at its end; a second one ends it at once."""
    with finishing():
        yield
        number = asked_to_stop()
    if number is not None:
        end_as(number)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Within it the handler gets the signals, but for those that are ignored."""
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before: dict[signal.Signals, _Handler] = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def asked_to_stop() -> signal.Signals | None:
    """The signal that `finishing` has noted; None where there is none, and outside of it."""
    return _Noted.number


def asked_twice() -> bool:
    """Whether a second signal has ended what `finishing` was to make whole, so that nothing more is waited for."""
    return _Noted.twice


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


def end_after(parent: int) -> None:
    """Wait until the process that started this one is gone, and then ask this one to end, as by SIGTERM.

    Args:
        parent: the number of that process.
    """
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)


def what_ended(error: BaseException) -> str | None:
    """What a signal did, in a word, where the error is what `end_as` raises; None for any other."""
    number = _number_of(error)
    return ENDED_BY[128 + number] if number is not None else None


def _number_of(error: BaseException | None) -> signal.Signals | None:
    """The signal that raised the error; None where none did."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    status = error.code if isinstance(error, SystemExit) else None
    return next((number for number in ENDING if status == 128 + number), None)


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
