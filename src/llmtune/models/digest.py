"""SHA-256 of files, computed once a process."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.runs.file_digest import sha256_of


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes; remembered while size and modification time stay the same."""
    real = path.resolve()
    stat = real.stat()
    return _sha256(real, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size: int, modified_ns: int) -> str:
    del size, modified_ns  # part of the cache's key alone
    return sha256_of(path)


def describe_weights(folder: Path) -> dict[str, Any]:
    """Where trained weights stand, and the sha256 of each safetensors file but an optimizer's."""
    files = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("optimizer")]
    return {"folder": str(folder), "sha256": {path.name: file_sha256(path) for path in files}}


def files_digest(paths: Sequence[Path]) -> str:
    """One hex SHA-256 over names and contents of several files; a single file's is its own."""
    if len(paths) == 1:
        return file_sha256(paths[0])
    lines = [f"{path.name}:{file_sha256(path)}" for path in sorted(paths, key=lambda path: path.name)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
