import math
import threading
import time

import pytest

from llmtune.tracking.entry import Entry, keep, metrics_entry, read_kept
from llmtune.tracking.entry_queue import BATCH_SIZE, EntryQueue, QueueSettings

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
        if batch:
            self.batches.append(list(batch))

    @property
    def steps(self):
        return [entry.content["step"] for batch in self.batches for entry in batch if entry.kind == "metrics"]


def _loss(step):
    return metrics_entry({"train/loss": float(step)}, step)


def _quick(store, errors=None, **settings):
    said = [] if errors is None else errors
    return EntryQueue(store.send, said.append, settings=QUICK, **settings)


def test_everything_arrives_in_order_and_in_batches_of_one_kind():
    store = Store()
    queue = _quick(store)
    for step in range(500):
        queue.put(_loss(step))
    queue.put(Entry("tags", {"a": "b"}))
    queue.put(_loss(500))
    assert queue.close(5) == 0
    assert store.steps == list(range(501))
    assert max(map(len, store.batches)) <= BATCH_SIZE
    assert [entry.kind for entry in store.batches[-2]] == ["tags"]


def test_a_slow_store_does_not_hold_up_the_caller():
    store = Store()
    store.hold.clear()
    queue = _quick(store)
    started = time.monotonic()
    for step in range(1000):
        queue.put(_loss(step))
    assert time.monotonic() - started < 1
    assert queue.close(0.1) == 1000
    assert time.monotonic() - started < 2
    store.hold.set()


def test_a_store_that_comes_back_gets_what_waited_and_nothing_stays_in_the_file(tmp_path):
    store, errors, file = Store(), [], tmp_path / "unsent.jsonl"
    store.away = True
    queue = _quick(store, errors, kept_file=file)
    queue.put(metrics_entry({"a": 1.0, "b": math.nan}, 3))
    while not file.exists():
        time.sleep(0.01)
    queue.put(_loss(4))
    assert store.batches == []
    assert [entry.content["step"] for entry in read_kept(file)[1]] == [3, 4]
    store.away = False
    assert queue.close(5) == 0
    assert store.steps == [3, 4]
    assert not file.exists()


def test_what_never_arrived_is_counted_and_kept_for_another_process(tmp_path):
    store, file = Store(), tmp_path / "unsent.jsonl"
    store.away = True
    queue = _quick(store, kept_file=file, describe=lambda: {"name": "a run"})
    queue.put(_loss(1))
    queue.put(_loss(2))
    assert queue.close(5) == 2
    described, entries = read_kept(file)
    assert described == {"name": "a run"}
    store.away = False
    again = _quick(store, kept_file=file, waiting=entries)
    again.put(_loss(3))
    assert again.close(5) == 0
    assert store.steps == [1, 2, 3]
    assert not file.exists()


def test_a_large_file_on_its_way_is_waited_for():
    store = Store()
    store.hold.clear()
    queue = _quick(store)
    queue.put(Entry("artifact", {"num_bytes": 40 * 2**20}))
    while queue._patient_until < time.monotonic() + 5:
        time.sleep(0.01)
    threading.Timer(0.6, store.hold.set).start()
    assert queue.close(0.1) == 0


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    file = tmp_path / "unsent.jsonl"
    keep(file, {"name": "a run"}, [_loss(1), _loss(2)])
    file.write_text(file.read_text()[:-9])
    assert [entry.content["step"] for entry in read_kept(file)[1]] == [1]
    assert read_kept(tmp_path / "none.jsonl") == ({}, [])
