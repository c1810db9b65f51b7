"""Work that several jobs need and one does, while the others wait for what comes of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llmtune.logs import say, warn

_PATIENCE = 1.0
"""Seconds of waiting that nobody needs to be told of."""


@contextmanager
def alone(lock: Path, work: str, longest_wait: float | None = None) -> Iterator[None]:
    """Keeps other processes out while it lasts; says once that it waits for one.

    Args:
        lock: file that stands for the work.
        work: what is done, for the message.
        longest_wait: seconds after which the work is done beside the other process, aloud; None waits until it ends.
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=_PATIENCE)
    except Timeout:
        say(f"waiting for another process that is at work on the same: {work}")
        _wait(held, work, longest_wait)
    try:
        yield
    finally:
        held.release()


def _wait(held: FileLock, work: str, longest: float | None) -> None:
    try:
        held.acquire(timeout=-1 if longest is None else longest)
    except Timeout:
        warn(f"the other process isn't done after {longest:.0f} s; {work} is done here too")
