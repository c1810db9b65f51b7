"""Which files a path, a folder or a glob names."""

import difflib
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmtune.errors import DataError

_NOT_DATA = ("readme", "license", "licence")


@dataclass(frozen=True)
class Place:
    """A file that holds rows."""

    path: str
    """How it is named in records and messages."""
    file: Path
    name: str
    """Its path below the folder that was named, with `/`; empty for a file that was named itself."""


@dataclass(frozen=True)
class Found:
    """What a path leads to."""

    places: list[Place]
    """In the order of their names."""
    left_out: list[str]
    """Names of hidden files, links to folders, READMEs and licences."""


def find_places(path: str, key: str) -> Found:
    """The files that a path names: one, all beneath a folder, or those that fit a glob.

    Args:
        path: as it was typed.
        key: config key that holds it, for messages.

    Raises:
        DataError: there is none; the nearest name beside it is suggested.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return Found([Place(path, place, "")], [])
    if place.is_dir():
        return _among(Path(path), place, _beneath(place), f"{key}={path}: the folder holds no file that can be read")
    if glob.has_magic(path):
        base = _fixed_part(place)
        try:
            files = [file for file in base.glob(str(place.relative_to(base))) if file.is_file()]
        except ValueError as error:
            raise DataError(f"{key}={path}: not a glob: {error}") from None
        return _among(base, base, files, f"{key}={path}: no file fits this glob")
    if place.exists():
        raise DataError(f"{key}={path}: neither a file nor a folder; store the rows in a file")
    beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    nearest = difflib.get_close_matches(place.name, beside, n=1)
    hint = f"did you mean {place.parent / nearest[0]}?" if nearest else f"set {key} to a file that is there"
    raise DataError(f"{key}={path}: there is no such file; {hint}")


def _among(typed: Path, base: Path, files: Iterable[Path], nothing: str) -> Found:
    places, left_out = [], []
    for file in files:
        name = file.relative_to(base).as_posix()
        if _is_data(name) and file.is_file():
            places.append(Place(str(typed / name), file, name))
        else:
            left_out.append(name)
    if not places:
        others = f" ({', '.join(sorted(left_out)[:3])} left out)" if left_out else ""
        raise DataError(f"{nothing}{others}; name a file, or a folder with files of examples")
    return Found(sorted(places, key=lambda place: place.name), sorted(left_out))


def _beneath(folder: Path) -> Iterator[Path]:
    """Every file beneath a folder, links to folders as well, which aren't followed."""
    for parent, folders, files in os.walk(folder):
        for name in [*files, *folders]:
            entry = Path(parent, name)
            if not entry.is_dir() or entry.is_symlink():
                yield entry


def _is_data(name: str) -> bool:
    parts = Path(name).parts
    return not any(part.startswith(".") for part in parts) and not parts[-1].lower().startswith(_NOT_DATA)


def _fixed_part(pattern: Path) -> Path:
    """The folder of a glob above its first wildcard."""
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
