"""sha256 of a file, or of several."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sha256_of(file: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_all(files: Iterable[tuple[str, Path]]) -> str:
    """Hex sha256 of the names and the bytes of several files, in their order.

    Args:
        files: each file's name, such as its place in a folder, and where it is.
    """
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
