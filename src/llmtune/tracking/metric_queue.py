"""Metrics on their way to the store: queued by the training loop, sent by a thread of their own."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmtune.tracking.client import Metric

BATCH_SIZE = 1000
_QUEUE_LIMIT = 200_000


@dataclass(frozen=True)
class QueueSettings:
    """How patient the queue is."""

    linger_seconds: float = 0.5
    """Metrics are gathered for so long before they are sent."""
    retry_seconds: float = 10.0
    """Wait between two attempts while the store is away."""


class MetricQueue:
    """Sends metrics from one background thread; neither a slow store nor one that is away holds up the caller.

    Args:
        send: sends one batch of at most 1000 metrics. It raises where the store is away, and the batch is tried again.
        on_away: called with the error when an attempt failed.
        settings: how patient the queue is.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Metric]], None],
        on_away: Callable[[Exception], None],
        settings: QueueSettings | None = None,
    ) -> None:
        self._send = send
        self._on_away = on_away
        self._settings = settings or QueueSettings()
        self._waiting: list[Metric] = []
        self._num_dropped = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llmtune-metrics", daemon=True)
        self._thread.start()

    def put(self, metrics: Sequence[Metric]) -> None:
        """Queue metrics and return at once; past 200,000 that wait, the new ones are dropped."""
        with self._lock:
            room = max(0, _QUEUE_LIMIT - len(self._waiting))
            self._waiting.extend(metrics[:room])
            self._num_dropped += max(0, len(metrics) - room)

    def close(self, deadline_seconds: float) -> int:
        """Send what waits and stop; returns how many metrics could not be sent within the deadline."""
        self._closing.set()
        self._thread.join(deadline_seconds)
        with self._lock:
            return len(self._waiting) + self._num_dropped

    def _run(self) -> None:
        while True:
            closing = self._closing.wait(self._settings.linger_seconds)
            sent_all = self._send_waiting()
            if closing:
                return
            if not sent_all:
                self._closing.wait(self._settings.retry_seconds)

    def _send_waiting(self) -> bool:
        while True:
            with self._lock:
                batch = self._waiting[:BATCH_SIZE]
            if not batch:
                return True
            try:
                self._send(batch)
            except Exception as error:  # whatever the store raises, training goes on
                self._on_away(error)
                return False
            with self._lock:
                del self._waiting[: len(batch)]


def as_metrics(values: dict[str, float], step: int) -> list[Metric]:
    """MLflow's metrics with the time of now.

    Args:
        values: metric's key to value.
        step: weight updates done.
    """
    now_milliseconds = int(time.time() * 1000)
    return [Metric(key, float(value), now_milliseconds, step) for key, value in values.items()]
