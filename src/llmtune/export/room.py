"""Whether a disk holds what an export writes."""

import shutil
from pathlib import Path

from llmtune.errors import UserError

_SPARE_BYTES = 64 * 2**20


def check_room(target: Path, num_bytes: int, what: str = "the export") -> None:
    """Refuse to start what the disk can't hold.

    Args:
        target: what is to be written; its nearest folder that is there tells the disk.
        num_bytes: how much.
        what: what takes the room, for the message.

    Raises:
        UserError: there is too little room.
    """
    existing = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes + _SPARE_BYTES:
        raise UserError(
            f"{what} takes about {size_words(num_bytes)} and {existing} has {size_words(free)} free; "
            "make room, or set export.path to another disk"
        )


def size_words(num_bytes: int) -> str:
    """A size for people: `538 MiB`, `15.2 GiB`."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.2f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 10 * 2**20 else f"{num_bytes / 2**20:.1f} MiB"
