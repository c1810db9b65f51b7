"""Ends a job whose sweep is gone: nobody would watch over it, and another process may go on with the sweep."""

import os
import signal
import threading
import time

import psutil

from llmtune.signals import end_after, kill_all

SWEEP_PROCESS_VARIABLE = "LLMTUNE_SWEEP_PROCESS"
"""Environment variable that gives a sweep's job the number of the sweep's process."""
_GRACE_SECONDS = 60.0  # of the sweep itself 30, of a launcher of several processes 45


def end_with_the_sweep() -> None:
    """Watch over the sweep that started this process, where one did: once it is gone, this process ends as by SIGTERM.

    It is killed, with all that it started, where that doesn't end it within a minute.
    """
    sweep = os.environ.pop(SWEEP_PROCESS_VARIABLE, None)  # what this process starts in turn ends with this one
    if sweep is not None:
        threading.Thread(target=_watch, args=(int(sweep),), name="sweep", daemon=True).start()


def _watch(sweep: int) -> None:
    end_after(sweep)
    time.sleep(_GRACE_SECONDS)
    kill_all(psutil.Process().children(recursive=True))
    os.kill(os.getpid(), signal.SIGKILL)
