"""sha256 of files, remembered so that an unchanged file isn't read for it again."""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.errors import DataError
from llmtune.runs.file_digest import sha256_of
from llmtune.runs.manifest import write_json

_FOLDER = "digests"
_SETTLED_NS = 2 * 10**9
"""A file changed less than this before it was read may change again within one tick of its file system's clock."""


@dataclass(frozen=True)
class Stamp:
    """What the file system says of a file; another one means that the content may be another."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def stamp_of(file: Path) -> Stamp:
    """How a file stands now."""
    status = file.stat()
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def stamped_digest(file: Path, cache_dir: Path) -> tuple[Stamp, str]:
    """How a file stands, and the hex sha256 of its bytes as that, from memory where it stood so when it was last read.

    Args:
        file: the file.
        cache_dir: digests are remembered in a folder of it.

    Raises:
        DataError: the file changed while it was read.
    """
    path = str(file.resolve()).encode("utf-8", "backslashreplace").decode()  # a name need not be text
    store = cache_dir / _FOLDER / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.json"
    stamp = stamp_of(file)
    known = _recalled(store, path, stamp)
    if known is not None:
        return stamp, known
    began = time.time_ns()
    digest = sha256_of(file)
    if stamp_of(file) != stamp:
        raise changed(file)
    if began - max(stamp.mtime_ns, stamp.ctime_ns) > _SETTLED_NS:
        _remember(store, path, stamp, digest)
    return stamp, digest


def changed(path: Path | str) -> DataError:
    """The error of a file that isn't what it was when it was opened."""
    return DataError(f"{path}: the file changed while it was read; type the command again when it is complete")


def _recalled(store: Path, path: str, stamp: Stamp) -> str | None:
    try:
        entry = json.loads(store.read_bytes())
        digest = entry["sha256"]
        return digest if entry == _entry(path, stamp, digest) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # missing, half or damaged: hashed anew
        return None


def _remember(store: Path, path: str, stamp: Stamp, digest: str) -> None:
    with suppress(OSError):  # where it can't be written the file is hashed each time
        write_json(store, _entry(path, stamp, digest))


def _entry(path: str, stamp: Stamp, digest: str) -> dict[str, Any]:
    """What is remembered; `check` tells a damaged digest from a right one."""
    content = [path, stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode, digest]
    check = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return {"path": path, **vars(stamp), "sha256": digest, "check": check}
