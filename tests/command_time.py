"""How long a person waits for a command, beside what the same machine does in the same minute."""

import subprocess
import sys
import time
from collections.abc import Sequence

_IMPORT_TORCH = (sys.executable, "-c", "import torch")
"""About a second, on a machine where nothing else runs."""


def times_importing_torch(command: Sequence[str]) -> float:
    """How many times as long a command takes as to import torch, the interpreter's start included.

    They run in turn and the best of three counts, since machines differ and are noisy.
    """
    turns = [(_seconds(command), _seconds(_IMPORT_TORCH)) for _ in range(3)]
    ours, theirs = zip(*turns, strict=True)
    return min(ours) / min(theirs)


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started
