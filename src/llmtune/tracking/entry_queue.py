"""Entries on their way to the store: sent by a thread of their own, on disk until the store has them."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtune.tracking.entry import Entry, first_batch
from llmtune.tracking.kept_file import KeptFile, read_kept

_UPLOAD_BYTES_PER_SECOND = 4 * 2**20


@dataclass(frozen=True)
class QueueSettings:
    """How patient the queue is."""

    linger_seconds: float = 2.0
    """Metrics are gathered for so long before they are sent."""
    retry_seconds: float = 10.0
    """Wait between two attempts while the store is away."""
    most_in_memory: int = 10_000
    """Entries that wait in memory; more of them wait in the file alone."""


class EntryQueue:
    """Sends entries in order from one background thread; no store, however slow, holds up the caller.

    Args:
        send: sends entries: some of metrics, or one of another kind; none at all reaches for the store. It raises
            where the store is away, and they are tried again.
        on_away: called with the error when an attempt failed.
        kept: file that holds what waits; None holds it in memory alone.
        waiting: entries of an earlier process, sent first.
        describe: the run, as it is written to the file.
        settings: how patient the queue is.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Entry]], None],
        on_away: Callable[[Exception], None],
        kept: KeptFile | None = None,
        waiting: Sequence[Entry] = (),
        *,
        describe: Callable[[], Mapping[str, Any]] = dict,
        settings: QueueSettings | None = None,
    ) -> None:
        self.tried = threading.Event()
        """Set once the store was reached, or wasn't."""
        self._send, self._on_away, self._describe, self._kept = send, on_away, describe, kept
        self._settings = settings or QueueSettings()
        self._waiting = list(waiting)
        self._num_in_file_alone = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._is_left_behind = False
        self._deadline_seconds = 0.0
        self._patient_until = 0.0
        if kept is not None:
            kept.begin(describe(), self._waiting)
        self._thread = threading.Thread(target=self._run, name="llmtune-record", daemon=True)
        self._thread.start()

    @property
    def is_kept(self) -> bool:
        """Whether all that waits stands in the file."""
        return self._kept is not None and self._kept.is_whole

    def put(self, entry: Entry) -> None:
        """Write the entry to the file, a line of it, queue it and return; nothing here waits for the store."""
        with self._lock:
            if self._kept is not None:
                self._kept.add(entry)
            many = self._num_in_file_alone or len(self._waiting) >= self._settings.most_in_memory
            if many and self.is_kept:
                self._num_in_file_alone += 1
            else:
                self._waiting.append(entry)

    def close(self, deadline_seconds: float) -> int:
        """Send what waits and stop; what is not sent stays in the file.

        Args:
            deadline_seconds: wait for so long without progress; longer while a large file is on its way.

        Returns:
            How many entries were not sent.
        """
        self._patient_until = max(self._patient_until, time.monotonic() + deadline_seconds)
        self._deadline_seconds = deadline_seconds
        self._closing.set()
        while self._thread.is_alive() and time.monotonic() < self._patient_until:
            self._thread.join(0.05)
        with self._lock:
            self._is_left_behind = True
            num_unsent = len(self._waiting) + self._num_in_file_alone
            if self._kept is not None and num_unsent == 0:
                self._kept.remove()
            self._mend_file()
            return num_unsent

    def _run(self) -> None:
        while True:
            reached = self._send_waiting()
            self.tried.set()
            if self._closing.is_set() and (self._is_left_behind or not self._waiting or not reached):
                return
            self._closing.wait(self._settings.linger_seconds if reached else self._settings.retry_seconds)

    def _send_waiting(self) -> bool:
        """Send what waits; the first time, reach for the store even if nothing does. Whether the store was reached."""
        while self._waiting or not self.tried.is_set():
            with self._lock:
                batch = first_batch(self._waiting)
            self._be_patient(batch)
            try:
                self._send(batch)
            except Exception as error:  # whatever the store raises, the run goes on
                with self._lock:
                    self._mend_file()
                self._on_away(error)
                return False
            self.tried.set()
            self._forget(batch)
            if self._is_left_behind:
                break
        return True

    def _forget(self, batch: Sequence[Entry]) -> None:
        """Take out what was sent; where memory holds no more, go on with what is in the file alone."""
        with self._lock:
            if self._is_left_behind:
                return  # the file may be another's by now; what stays in it is known to the store when it comes again
            del self._waiting[: len(batch)]
            if self._kept is not None and batch:
                self._kept.count_sent(len(batch))
        if self._kept is None or self._waiting:
            return
        read = read_kept(self._kept.path)[1] if self._num_in_file_alone else []
        with self._lock:
            self._waiting[:0] = read = read[: self._settings.most_in_memory]
            self._num_in_file_alone = max(0, self._num_in_file_alone - len(read)) if read else 0
            if not self._waiting and not self._is_left_behind:
                self._kept.begin(self._describe())

    def _be_patient(self, batch: Sequence[Entry]) -> None:
        """Put off the end of `close`: there was progress, and a large file takes its time."""
        num_bytes = sum(entry.content.get("num_bytes", 0) for entry in batch)
        allowed = self._deadline_seconds + num_bytes / _UPLOAD_BYTES_PER_SECOND
        self._patient_until = time.monotonic() + allowed

    def _mend_file(self) -> None:
        """Write the file anew where the disk refused a line of it."""
        if self._waiting and not self._num_in_file_alone and self._kept is not None and not self._kept.is_whole:
            self._kept.begin(self._describe(), self._waiting)
