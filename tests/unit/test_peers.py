"""A watch finds the process that failed, is gone, fell silent or keeps the others waiting, and nobody else."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from torch.distributed import HashStore

from llmtune.errors import PeerFailed
from llmtune.peers import PeerWatch

pytestmark = pytest.mark.fast
TIMEOUT = 0.5


class Other:
    """The second of two processes, as the first sees it: it lives, and comes to exchanges when told to."""

    def __init__(self, store: HashStore, pid: int, started: float) -> None:
        self._store = store
        self.arrived = 0
        self.is_silent = threading.Event()
        store.set("who/1", json.dumps([socket.gethostname(), pid, started]))
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        number = 0
        while not self.is_silent.wait(TIMEOUT / 10):
            number += 1
            self._store.set("beat/1", f"{number} {self.arrived}")


@pytest.fixture
def store():
    return HashStore()


@pytest.fixture
def other(store):
    other = Other(store, os.getpid(), psutil.Process().create_time())
    yield other
    other.is_silent.set()


@pytest.fixture
def watch(store, other):
    watch = PeerWatch(store, 0, 2, TIMEOUT)
    yield watch
    watch.stop()


def found(watch) -> PeerFailed | None:
    """What the watch finds within three times its limit."""
    return watch.fault(3 * TIMEOUT)


def test_a_process_that_works_is_let_alone(watch, other) -> None:
    for _ in range(8):
        watch.arrive(patient=False)
        other.arrived += 1
        time.sleep(TIMEOUT / 3)
    assert watch.fault(0) is None
    watch.check()


def test_one_that_comes_before_this_one_is_let_alone(watch, other) -> None:
    other.arrived = 3
    assert found(watch) is None


def test_one_that_falls_silent_is_found(watch, other) -> None:
    other.is_silent.set()
    assert f"process 1 (number {os.getpid()} on {socket.gethostname()}) hasn't been heard of for" in str(found(watch))
    with pytest.raises(PeerFailed, match="it is stopped, or hangs"):
        watch.check()


@pytest.mark.parametrize(("patient", "finds"), [(False, True), (True, False)])
def test_one_that_keeps_this_one_waiting_is_found_unless_it_may(watch, patient, finds) -> None:
    watch.arrive(patient=patient)
    assert ("has kept the others waiting" in str(found(watch))) == finds


def test_one_that_comes_late_but_in_time_is_let_alone(watch, other) -> None:
    watch.arrive(patient=False)
    time.sleep(TIMEOUT / 2)
    other.arrived += 1
    assert found(watch) is None


def test_the_wait_is_counted_from_when_this_one_came(watch) -> None:
    assert watch.fault(2 * TIMEOUT) is None
    watch.arrive(patient=False)
    assert watch.fault(TIMEOUT / 2) is None


def test_one_that_was_killed_is_found(store) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    other = Other(store, process.pid, psutil.Process(process.pid).create_time())
    watch = PeerWatch(store, 0, 2, 60.0)
    assert watch.fault(1.5) is None
    process.kill()
    process.wait()
    fault = watch.fault(10)
    assert fault is not None
    assert (fault.exit_status, "was killed, or crashed" in str(fault)) == (137, True)
    other.is_silent.set()
    watch.stop()


def test_one_that_says_why_it_ends_is_quoted(watch, store) -> None:
    store.set("end/1", json.dumps(["rows.jsonl:7: no", 2]))
    fault = found(watch)
    assert fault is not None
    assert (str(fault), fault.exit_status) == ("rows.jsonl:7: no", 2)


def test_one_that_has_left_is_let_alone(watch, other, store) -> None:
    store.set("end/1", "left")
    other.is_silent.set()
    watch.arrive(patient=False)
    assert found(watch) is None
