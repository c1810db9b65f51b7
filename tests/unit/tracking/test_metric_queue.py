import math
import threading
import time

import pytest

from llmtune.tracking.metric_queue import BATCH_SIZE, MetricQueue, QueueSettings, as_metrics

pytestmark = pytest.mark.fast
QUICK = QueueSettings(linger_seconds=0.01, retry_seconds=0.01)


class Store:
    def __init__(self):
        self.batches = []
        self.away = False
        self.hold = threading.Event()
        self.hold.set()

    def send(self, batch):
        self.hold.wait(5)
        if self.away:
            raise ConnectionError("away")
        self.batches.append([(metric.key, metric.value, metric.step) for metric in batch])


def test_everything_arrives_in_order_and_in_batches():
    store = Store()
    queue = MetricQueue(store.send, lambda _: None, QUICK)
    for step in range(2500):
        queue.put(as_metrics({"train/loss": float(step)}, step))
    assert queue.close(5) == 0
    assert [step for batch in store.batches for _, _, step in batch] == list(range(2500))
    assert max(map(len, store.batches)) <= BATCH_SIZE


def test_a_slow_store_does_not_hold_up_the_caller():
    store = Store()
    store.hold.clear()
    queue = MetricQueue(store.send, lambda _: None, QUICK)
    started = time.monotonic()
    for step in range(1000):
        queue.put(as_metrics({"train/loss": 1.0}, step))
    assert time.monotonic() - started < 1
    assert queue.close(0.1) == 1000
    store.hold.set()


def test_a_store_that_comes_back_gets_what_waited():
    store, errors = Store(), []
    store.away = True
    queue = MetricQueue(store.send, errors.append, QUICK)
    queue.put(as_metrics({"a": 1.0, "b": math.nan}, 3))
    while not errors:
        time.sleep(0.01)
    assert store.batches == []
    store.away = False
    assert queue.close(5) == 0
    assert [(key, step) for key, _, step in store.batches[0]] == [("a", 3), ("b", 3)]


def test_what_never_arrived_is_counted():
    store = Store()
    store.away = True
    queue = MetricQueue(store.send, lambda _: None, QUICK)
    queue.put(as_metrics({"a": 1.0, "b": 2.0}, 3))
    assert queue.close(5) == 2
