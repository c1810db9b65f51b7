"""SIGTERM as an exception, or noted."""

import gc
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest

from llmtune.signals import ENDING, TERMINATED, asked_to_stop, finishing, flagged, stop_flags, terminable, what_ended

pytestmark = pytest.mark.fast


def test_sigterm_is_an_exit_within_and_what_it_was_after() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == TERMINATED == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_within_finishing_the_first_is_noted_its_echo_ignored_and_a_later_one_ends() -> None:
    told, before = Queue(), [signal.getsignal(number) for number in ENDING]
    with pytest.raises(KeyboardInterrupt), finishing(told.put):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert asked_to_stop() is signal.SIGTERM
        assert flagged(stop_flags()) is signal.SIGTERM
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert (told.get(timeout=5), told.empty()) == (signal.SIGTERM, True)
    assert asked_to_stop() is None
    assert [signal.getsignal(number) for number in ENDING] == before


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with finishing():
            os.kill(os.getpid(), signal.SIGINT)
            assert asked_to_stop() is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_processes_noted_is_one_signal_for_all() -> None:
    assert flagged([0.0, 0.0, 0.0]) is None
    assert flagged([0.0, 2.0, 0.0]) is signal.SIGINT
    assert flagged([0.0, 0.0, 1.0]) is signal.SIGHUP
    assert flagged([1.0, 1.0, 1.0]) is signal.SIGTERM


LOSES_SIGNALS = """
import os, signal, sys, threading, time
from contextlib import nullcontext
from weakref import WeakKeyDictionary
from llmtune.signals import terminable
signal.signal(signal.SIGINT, signal.default_int_handler)
numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT] * 10
within = terminable if sys.argv[1] == "terminable" else nullcontext
if within is nullcontext:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
class Key: ...
def work(number):
    known, sent = WeakKeyDictionary(), time.monotonic()
    threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
    while time.monotonic() < sent + 2:
        known[Key()] = 1
    return "lost"
ends = []
for number in numbers:
    try:
        with within():
            ends.append(work(number))
    except SystemExit as end:
        ends.append(end.code)
    except KeyboardInterrupt:
        ends.append(130)
    if within is nullcontext and "lost" in ends:
        break
print(*ends)
"""
"""Loops in which nearly all the time is spent where Python drops exceptions, each with a signal."""


def _ends(within: str) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", LOSES_SIGNALS, within], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.split(), done.stderr


def test_a_signal_whose_exception_python_drops_comes_again() -> None:
    ends, told = _ends("terminable")
    assert ends == ["143", "129", "130"] * 10
    assert told == ""


def test_control_without_it_signals_are_lost() -> None:
    ends, told = _ends("nothing")
    assert "lost" in ends
    assert "Exception ignored in" in told


def test_other_exceptions_that_python_drops_are_told_as_before(capsys) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("of another")

    before, told = sys.unraisablehook, []
    sys.unraisablehook = lambda lost: told.append(str(lost.exc_value))
    try:
        with terminable():
            Broken()
            gc.collect()
    finally:
        sys.unraisablehook = before
    assert told == ["of another"]


def test_a_terminal_that_hangs_up_ends_what_can_be_terminated() -> None:
    with pytest.raises(SystemExit) as stop, terminable():
        os.kill(os.getpid(), signal.SIGHUP)
    assert (stop.value.code, what_ended(stop.value)) == (129, "hung up")


@pytest.mark.parametrize("within", [terminable, finishing])
def test_an_ignored_hang_up_stays_ignored(within) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with within():
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked_to_stop() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_a_signal_is_what_ended() -> None:
    assert what_ended(KeyboardInterrupt()) == "interrupted"
    assert what_ended(SystemExit(143)) == "terminated"
    assert [what_ended(error) for error in (SystemExit(1), SystemExit(None), ValueError(143))] == [None] * 3


def test_outside_of_the_main_thread_nothing_is_noted() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> bool:
        with finishing():
            return signal.getsignal(signal.SIGTERM) is before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result()
