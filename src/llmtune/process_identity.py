"""Which process something belongs to, so that it is told from a later one with the same number."""

import os
import socket
from dataclasses import dataclass

import psutil

_START_TIME_TOLERANCE_SECONDS = 1.0


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, of this machine or of another."""

    host: str
    """Its machine."""
    pid: int
    """Its number there."""
    started: float
    """When it began, seconds since the epoch."""

    @classmethod
    def own(cls) -> "ProcessIdentity":
        """This process."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    @property
    def is_near(self) -> bool:
        """Whether it is one of this machine."""
        return self.host == socket.gethostname()

    def is_gone(self) -> bool:
        """Whether it has ended; False for a process of another machine, which can't be seen from here."""
        if not self.is_near:
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            return abs(process.create_time() - self.started) > _START_TIME_TOLERANCE_SECONDS
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False
