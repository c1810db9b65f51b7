"""Entries on their way to the store: sent by a thread of their own, kept in a file while it is away."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.tracking.entry import Entry, keep, keep_one_more

BATCH_SIZE = 50
"""Entries of metrics in one request; MLflow takes at most 1000 metrics."""
_QUEUE_LIMIT = 200_000
_UPLOAD_BYTES_PER_SECOND = 4 * 2**20


@dataclass(frozen=True)
class QueueSettings:
    """How patient the queue is."""

    linger_seconds: float = 0.5
    """Metrics are gathered for so long before they are sent."""
    retry_seconds: float = 10.0
    """Wait between two attempts while the store is away."""


class EntryQueue:
    """Sends entries in order from one background thread; no store, however slow, holds up the caller.

    Args:
        send: sends entries: some of metrics, or one of another kind; none at all reaches for the store. It raises
            where the store is away, and they are tried again.
        on_away: called with the error when an attempt failed.
        kept_file: keeps what waits while the store is away; None keeps nothing.
        waiting: entries of an earlier process, sent first.
        describe: the run, as it is written to the file.
        settings: how patient the queue is.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Entry]], None],
        on_away: Callable[[Exception], None],
        kept_file: Path | None = None,
        waiting: Sequence[Entry] = (),
        *,
        describe: Callable[[], Mapping[str, Any]] = dict,
        settings: QueueSettings | None = None,
    ) -> None:
        self.tried = threading.Event()
        """Set once the store was reached, or wasn't."""
        self._send, self._on_away, self._describe = send, on_away, describe
        self._kept_file, self._is_kept = kept_file, bool(waiting)
        self._settings = settings or QueueSettings()
        self._waiting = list(waiting)
        self._num_dropped = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._is_away = False
        self._patient_until = 0.0
        self._thread = threading.Thread(target=self._run, name="llmtune-record", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Queue an entry and return at once; past 200,000 that wait, new ones are dropped."""
        with self._lock:
            if len(self._waiting) >= _QUEUE_LIMIT:
                self._num_dropped += 1
                return
            self._waiting.append(entry)
            if self._is_kept and self._kept_file is not None:
                with suppress(OSError):
                    keep_one_more(self._kept_file, entry)

    def close(self, deadline_seconds: float) -> int:
        """Send what waits and stop; what is not sent is kept.

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
            if self._waiting or self._is_kept:
                self._keep()
            return len(self._waiting) + self._num_dropped

    _deadline_seconds = 0.0

    def _run(self) -> None:
        while True:
            reached = self._send_waiting()
            self.tried.set()
            if self._closing.is_set() and (not self._waiting or not reached):
                return
            self._closing.wait(self._settings.linger_seconds if reached else self._settings.retry_seconds)

    def _send_waiting(self) -> bool:
        while True:
            with self._lock:
                batch = self._next_batch()
            self._be_patient(batch)
            try:
                self._send(batch)
            except Exception as error:  # whatever the store raises, the run goes on
                with self._lock:
                    self._keep()
                self._on_away(error)
                return False
            with self._lock:
                del self._waiting[: len(batch)]
                if not self._waiting:
                    if self._is_kept:
                        self._keep()
                    return True

    def _next_batch(self) -> list[Entry]:
        count = 0
        while count < min(BATCH_SIZE, len(self._waiting)) and self._waiting[count].kind == "metrics":
            count += 1
        return self._waiting[: max(1, count)]

    def _be_patient(self, batch: Sequence[Entry]) -> None:
        """Put off the end of `close`: there was progress, and a large file takes its time."""
        num_bytes = sum(entry.content.get("num_bytes", 0) for entry in batch)
        allowed = self._deadline_seconds + num_bytes / _UPLOAD_BYTES_PER_SECOND
        self._patient_until = time.monotonic() + allowed

    def _keep(self) -> None:
        self._is_kept = bool(self._waiting)
        if self._kept_file is not None:
            with suppress(OSError):
                keep(self._kept_file, self._describe(), self._waiting)
