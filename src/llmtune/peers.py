"""The other processes of a run, watched from a thread: one that fails, is killed or hangs ends all of them, by name."""

import atexit
import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from llmtune.errors import PeerFailed, leave_message
from llmtune.process_identity import ProcessIdentity

if TYPE_CHECKING:
    from torch.distributed import Store

_LEFT = "left"
_MOST_SECONDS_BETWEEN_LOOKS = 1.0
_NOTICE_SECONDS = 60.0
_REST_SECONDS = 2.0
_KILLED_STATUS = 137
_LONGER = "where it only needs longer, raise hardware.peer_timeout_seconds"


@dataclass
class _Peer:
    """What is known of another process."""

    rank: int
    heard_at: float
    """When its thread last counted on."""
    moved_at: float
    """When it last came to an exchange."""
    beat: str = ""
    arrived: int = 0
    """Exchanges that it has come to."""
    identity: ProcessIdentity | None = None
    """None until it has said where it runs."""

    @property
    def name(self) -> str:
        """As a person is told of it."""
        known = self.identity
        return f"process {self.rank} (number {known.pid} on {known.host})" if known else f"process {self.rank}"

    def hear(self, beat: str, now: float) -> None:
        """Take note of what it wrote."""
        if beat == self.beat:
            return
        arrived = int(beat.split()[1])
        self.beat, self.heard_at = beat, now
        if arrived != self.arrived:
            self.arrived, self.moved_at = arrived, now


class PeerWatch:
    """Tells the other processes, by the group's store, that this one works, and finds the one that doesn't.

    A thread counts on once a second, so a process that is stopped falls silent; the exchanges that the process comes to
    are counted too, so one that works on and on without coming to the next is found by those that wait for it.

    Args:
        store: the group's; used by this watch alone.
        rank: this process.
        num_processes: how many there are.
        timeout_seconds: how long a process may be silent, or keep the others waiting.
    """

    def __init__(self, store: "Store", rank: int, num_processes: int, timeout_seconds: float) -> None:
        self._store = store
        self._rank = rank
        self._timeout = timeout_seconds
        self._between_looks = min(_MOST_SECONDS_BETWEEN_LOOKS, timeout_seconds / 4)
        now = time.monotonic()
        self._peers = [_Peer(other, now, now) for other in range(num_processes) if other != rank]
        self._beats = 0
        self._arrived, self._arrived_at, self._is_patient = 0, now, False
        self._looked_at = now
        self._fault: PeerFailed | None = None
        self._found, self._noticed = threading.Event(), threading.Event()
        self._stopped = threading.Event()
        store.set(f"who/{rank}", json.dumps(astuple(ProcessIdentity.own())))
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()
        atexit.register(self._rest)

    def arrive(self, *, patient: bool) -> None:
        """Say that this process has come to the next exchange.

        Args:
            patient: whether another may work on for as long as it needs before it comes too.
        """
        self._arrived_at, self._is_patient = time.monotonic(), patient
        self._arrived += 1

    def check(self) -> None:
        """Return unless another process has failed, is gone or hangs.

        Raises:
            PeerFailed: one has.
        """
        if self._fault is not None:
            self._noticed.set()
            raise self._fault
        silent = time.monotonic() - self._looked_at
        if silent > self._timeout + self._between_looks:
            raise PeerFailed(
                f"what started the run's processes hasn't answered for {silent:.0f} s: it hangs, or is stopped"
            )

    def fault(self, seconds: float) -> PeerFailed | None:
        """What has become of the others, if anything has, looked for until `seconds` have passed."""
        if self._found.wait(seconds):
            self._noticed.set()
        return self._fault

    def tell(self, failed: PeerFailed | None) -> None:
        """Let the others know how this process ends; where the store is gone, each finds that out by itself.

        Args:
            failed: what they are to end with; None where they may go on.
        """
        from torch.distributed import DistError

        end = _LEFT if failed is None else json.dumps([str(failed), failed.exit_status])
        with suppress(DistError):
            self._store.set(f"end/{self._rank}", end)

    def stop(self) -> None:
        """Let the others alone from now on, and they this one."""
        self._stopped.set()
        self._noticed.set()
        self.tell(None)

    def _rest(self) -> None:
        """Be out of the store before Python ends, which aborts where a thread is in it."""
        self._stopped.set()
        self._noticed.set()
        self._thread.join(_REST_SECONDS)

    def _watch(self) -> None:
        from torch.distributed import DistError

        while not self._stopped.wait(self._between_looks):
            try:
                self._fault = self._look()
            except DistError:
                self._fault = PeerFailed("what started the run's processes is gone")
            if self._fault is not None and not self._stopped.is_set():
                self._found.set()
                self._end_if_not_noticed(self._fault)
                return

    def _end_if_not_noticed(self, fault: PeerFailed) -> None:
        """End this process where it waits for something that can't come, as on a GPU, and can't be told."""
        if not self._noticed.wait(_NOTICE_SECONDS):
            leave_message(fault)
            os._exit(fault.exit_status)

    def _look(self) -> PeerFailed | None:
        self._beats += 1
        self._store.set(f"beat/{self._rank}", f"{self._beats} {self._arrived}")
        found = next((fault for peer in self._peers if (fault := self._fault_of(peer))), None)
        self._looked_at = time.monotonic()
        return found

    def _fault_of(self, peer: _Peer) -> PeerFailed | None:
        now, who = time.monotonic(), None if peer.identity else self._read(f"who/{peer.rank}")
        if who is not None:
            peer.identity = ProcessIdentity(*json.loads(who))
        peer.hear(self._read(f"beat/{peer.rank}") or peer.beat, now)
        is_gone = peer.identity is not None and peer.identity.is_gone()
        end = self._read(f"end/{peer.rank}")
        if end is not None:
            return None if end == _LEFT else PeerFailed(*json.loads(end))
        if is_gone:
            how = "was killed, or crashed without a word, as where memory runs out: lower train.micro_batch_size"
            return PeerFailed(f"{peer.name} {how}", _KILLED_STATUS)
        if now - peer.heard_at > self._timeout:
            return PeerFailed(
                f"{peer.name} hasn't been heard of for {now - peer.heard_at:.0f} s: it is stopped, or hangs"
            )
        waited = now - max(peer.moved_at, self._arrived_at)
        if peer.arrived < self._arrived and not self._is_patient and waited > self._timeout:
            return PeerFailed(f"{peer.name} has kept the others waiting for {waited:.0f} s: it hangs; {_LONGER}")
        return None

    def _read(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None
