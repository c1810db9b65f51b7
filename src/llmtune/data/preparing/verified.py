"""Files that are the ones that were written: read for their sha256 once, and again after something touched them."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmtune.data.reading.digests import Stamp, stamp_of
from llmtune.runs.file_digest import sha256_of
from llmtune.runs.manifest import write_json

_SEEN = "seen.json"


def digest_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hex sha256 of files in a folder, which remembers how they stood when they were read."""
    stamps = _stamps(folder, names)
    digests = {name: sha256_of(folder / name) for name in stamps}
    write_json(folder / _SEEN, _entries(stamps, digests))
    return digests


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Check that files are those that had these digests; one that stands as it stood isn't read for it.

    Raises:
        OSError, ValueError: one is missing or another.
    """
    stamps = _stamps(folder, digests)
    if _recalled(folder / _SEEN) == _entries(stamps, digests):
        return
    for name, digest in digests.items():
        if sha256_of(folder / name) != digest:
            raise ValueError(f"{name} has another sha256 than when it was written")
    with suppress(OSError):  # where it can't be written the files are read each time
        write_json(folder / _SEEN, _entries(stamps, digests))


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, Stamp]:
    return {name: stamp_of(folder / name) for name in names}


def _entries(stamps: Mapping[str, Stamp], digests: Mapping[str, str]) -> dict[str, Any]:
    return {name: {**vars(stamp), "sha256": digests[name]} for name, stamp in stamps.items()}


def _recalled(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
