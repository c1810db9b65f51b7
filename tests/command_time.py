"""How long a person waits for a command."""

import subprocess
import time
from collections.abc import Sequence


def best_seconds(command: Sequence[str]) -> float:
    """Seconds that a command takes, the interpreter's start included; the best of three, since machines are noisy."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
