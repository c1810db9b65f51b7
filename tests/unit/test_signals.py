"""SIGTERM as an exception, or noted."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest

from llmtune.signals import ENDING, TERMINATED, asked_to_stop, finishing, flagged, stop_flags, terminable

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
    assert flagged([0.0, 0.0]) is None
    assert flagged([0.0, 2.0]) is signal.SIGINT
    assert flagged([1.0, 1.0]) is signal.SIGTERM


def test_outside_of_the_main_thread_nothing_is_noted() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> bool:
        with finishing():
            return signal.getsignal(signal.SIGTERM) is before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result()
