"""Which of a run's processes this is, read from the environment that accelerate and torchrun set."""

import os


def rank() -> int:
    """This process's number among the run's processes, 0 for the first or only one."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes files, talks to the tracker and to the person."""
    return rank() == 0
