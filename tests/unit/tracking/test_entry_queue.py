import math
import threading
import time

import pytest

from llmtune.tracking.entry import BATCH_SIZE, Entry, metrics_entry
from llmtune.tracking.entry_queue import EntryQueue, QueueSettings
from llmtune.tracking.kept_file import KeptFile, read_kept

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
    return EntryQueue(store.send, said.append, **{"settings": QUICK, **settings})


def _kept_steps(file):
    return [entry.content["step"] for entry in read_kept(file)[1]]


def _wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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
    queue = _quick(store, errors, kept=KeptFile(file))
    queue.put(metrics_entry({"a": 1.0, "b": math.nan}, 3))
    queue.put(_loss(4))
    assert _kept_steps(file) == [3, 4]
    assert store.batches == []
    store.away = False
    assert queue.close(5) == 0
    assert store.steps == [3, 4]
    assert not file.exists()


def test_an_entry_is_on_disk_before_the_store_has_it_and_no_longer_after(tmp_path):
    store, file = Store(), tmp_path / "unsent.jsonl"
    store.hold.clear()
    queue = _quick(store, kept=KeptFile(file))
    queue.put(_loss(1))
    assert _kept_steps(file) == [1]
    store.hold.set()
    _wait_for(lambda: _kept_steps(file) == [])
    assert file.exists()
    queue.put(_loss(2))
    queue.put(_loss(3))
    assert queue.close(5) == 0
    assert store.steps == [1, 2, 3]


def test_what_never_arrived_is_counted_and_kept_for_another_process(tmp_path):
    store, file = Store(), tmp_path / "unsent.jsonl"
    store.away = True
    queue = _quick(store, kept=KeptFile(file), describe=lambda: {"name": "a run"})
    queue.put(_loss(1))
    queue.put(_loss(2))
    assert queue.close(5) == 2
    assert queue.is_kept
    described, entries = read_kept(file)
    assert described == {"name": "a run"}
    store.away = False
    again = _quick(store, kept=KeptFile(file), waiting=entries)
    again.put(_loss(3))
    assert again.close(5) == 0
    assert store.steps == [1, 2, 3]
    assert not file.exists()


def test_of_what_was_sent_in_part_only_the_rest_is_kept(tmp_path):
    store, file = Store(), tmp_path / "unsent.jsonl"
    send = store.send

    def twice(batch):
        store.away = len(store.batches) == 2
        send(batch)

    store.send = twice
    queue = _quick(store, kept=KeptFile(file), waiting=[_loss(step) for step in range(BATCH_SIZE * 2 + 7)])
    queue.put(_loss(1000))
    assert queue.close(5) == 8
    assert _kept_steps(file) == [*range(BATCH_SIZE * 2, BATCH_SIZE * 2 + 7), 1000]


def test_many_entries_wait_in_the_file_alone_and_arrive_in_order_once(tmp_path):
    store, file = Store(), tmp_path / "unsent.jsonl"
    store.hold.clear()
    few = QueueSettings(linger_seconds=0.01, retry_seconds=0.01, most_in_memory=10)
    queue = _quick(store, kept=KeptFile(file), settings=few)
    for step in range(105):
        queue.put(_loss(step))
    assert len(queue._waiting) == 10
    assert _kept_steps(file) == list(range(105))
    store.hold.set()
    _wait_for(lambda: len(store.steps) > 50)
    for step in range(105, 130):
        queue.put(_loss(step))
    assert queue.close(5) == 0
    assert store.steps == list(range(130))


def test_a_disk_that_takes_no_line_loses_nothing_that_is_in_memory(tmp_path):
    store, folder = Store(), tmp_path / "run"
    store.away = True
    queue = _quick(store, kept=KeptFile(folder / "unsent.jsonl"))
    queue.put(_loss(1))
    assert not queue.is_kept
    folder.mkdir()
    queue.put(_loss(2))
    assert queue.close(5) == 2
    assert queue.is_kept
    assert _kept_steps(folder / "unsent.jsonl") == [1, 2]


def test_a_sender_left_behind_takes_nothing_out_of_a_file_that_was_written_anew(tmp_path):
    file = tmp_path / "unsent.jsonl"
    old, new = KeptFile(file), KeptFile(file)
    old.begin({}, [_loss(1), _loss(2)])
    new.begin({}, [_loss(2), _loss(3)])
    old.count_sent(2)
    assert _kept_steps(file) == [2, 3]
    new.count_sent(1)
    assert _kept_steps(file) == [3]


def test_a_large_file_on_its_way_is_waited_for():
    store = Store()
    store.hold.clear()
    queue = _quick(store)
    queue.put(Entry("artifact", {"num_bytes": 40 * 2**20}))
    while queue._patient_until < time.monotonic() + 5:
        time.sleep(0.01)
    threading.Timer(0.6, store.hold.set).start()
    assert queue.close(0.1) == 0


@pytest.mark.parametrize("num_bytes", [1, 9, 60])
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path, num_bytes):
    file = tmp_path / "unsent.jsonl"
    KeptFile(file).begin({"name": "a run"}, [_loss(1), _loss(2)])
    file.write_bytes(file.read_bytes()[:-num_bytes])
    assert read_kept(file)[0] == {"name": "a run"}
    assert _kept_steps(file) == [1]
    assert read_kept(tmp_path / "none.jsonl") == ({}, [])


def test_a_damaged_line_spoils_no_other(tmp_path):
    file = tmp_path / "unsent.jsonl"
    KeptFile(file).begin({"name": "a run"}, [_loss(1), _loss(2), _loss(3)])
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], b"\xff\xfe[1]\n", b"[2]\n", b'{"number": 2}\n', *lines[3:]]))
    assert _kept_steps(file) == [1, 3]
