"""Makes the helpers beside the tests importable, also for the processes that a test starts."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def impatient(monkeypatch):
    """Two attempts follow each other at once."""
    from llmtune.tracking.entry_queue import QueueSettings

    quick = QueueSettings(linger_seconds=0.05, retry_seconds=0.1)
    monkeypatch.setattr("llmtune.tracking.entry_queue.QueueSettings", lambda: quick)


@pytest.fixture
def store(empty_store, tmp_path):
    """The file of a store that is empty."""
    return Path(shutil.copy(empty_store, tmp_path))
