"""Work for the tests of processes, where a process of its own can import it."""

import os
import signal
import time
from dataclasses import dataclass

from llmtune.errors import DataError


@dataclass(frozen=True)
class Square:
    """Squares; may sleep, fail or die on the way."""

    seconds: float = 0.0
    fails_at: int | None = None
    dies_at: int | None = None

    def __call__(self, number: int) -> tuple[int, int]:
        time.sleep(self.seconds * (number % 3))
        if number == self.fails_at:
            raise DataError(["a.jsonl:3: no", "a.jsonl:4: no"], 5, "mend them")
        if number == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2, os.getpid()
