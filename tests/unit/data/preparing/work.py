"""Work for the tests of processes, where a process of its own can import it."""

import importlib
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


class Awkward(Exception):
    """Can't be made anew from what it is pickled as."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


class Panic(BaseException):
    """Such as a library in Rust raises."""


@dataclass(frozen=True)
class Fails:
    """Raises what it is told to, or gives what can't be sent."""

    how: str

    def __call__(self, number: int) -> object:
        if self.how == "bug":
            raise KeyError("lost")
        if self.how == "awkward":
            raise Awkward("this", "that")
        if self.how == "panic":
            raise Panic("index out of bounds")
        if self.how == "local":
            raise type("Local", (Exception,), {})("from nowhere")
        return lambda: number


@dataclass(frozen=True)
class Imports:
    """Says where a module comes from."""

    name: str

    def __call__(self, number: int) -> str | None:
        return importlib.import_module(self.name).__file__
