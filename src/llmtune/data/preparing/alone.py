"""Work that several jobs need and one does, while the others wait for what comes of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llmtune.logs import say

_PATIENCE = 1.0
"""Seconds of waiting that nobody needs to be told of."""


@contextmanager
def alone(lock: Path, work: str) -> Iterator[None]:
    """Keeps other processes out while it lasts; says once that it waits for one.

    Args:
        lock: file that stands for the work.
        work: what is done, for the message.
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=_PATIENCE)
    except Timeout:
        say(f"waiting for another process that is at work on the same: {work}")
        held.acquire()
    try:
        yield
    finally:
        held.release()
