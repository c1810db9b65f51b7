"""Which files a path, a folder or a glob names."""

import difflib
import errno
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from llmtune.errors import DataError

_NOT_DATA = ("readme", "license", "licence")
_ALIKE = 0.6
"""Likeness of names, but for their endings, from which one is suggested for the other."""


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
    try:
        place = Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"{key}={path}: there is no such user; write the path without ~") from None
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
    if place.is_symlink():
        raise DataError(f"{key}={path}: {_why_dead(place)}; mend the link, or set {key} to the file itself")
    raise DataError(f"{key}={path}: there is no such file; {_hint(place, key)}")


def _hint(place: Path, key: str) -> str:
    file = next((part for part in place.parents if part.is_file()), None)
    if file is not None:
        return f"{file} is a file, not a folder"
    beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    # A short name's ending alone would make it like any other.
    alike = [name for name in beside if difflib.SequenceMatcher(None, _stem(place.name), _stem(name)).ratio() >= _ALIKE]
    nearest = difflib.get_close_matches(place.name, alike, n=1)
    return f"did you mean {place.parent / nearest[0]}?" if nearest else f"set {key} to a file that is there"


def _stem(name: str) -> str:
    return name.lstrip(".").partition(".")[0].lower()


def _why_dead(link: Path) -> str:
    """What is wrong with a link that leads to nothing."""
    try:
        link.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "this link leads back to itself"
    return f"this is a link to {link.readlink()}, which isn't there"


def leads_to(path: str, file: Path) -> bool:
    """Whether a path that was typed names a file, or would once the file is there."""
    place = Path(path).expanduser()
    if place.is_file():
        return place.resolve() == file.resolve() or (file.exists() and place.samefile(file))
    if place.is_dir():
        return file.resolve().is_relative_to(place.resolve())
    base, found = _fixed_part(place), file.resolve()
    pattern = place.parts[len(base.parts) :]
    if found.is_relative_to(base.resolve()) and _fits(found.relative_to(base.resolve()).parts, pattern):
        return True
    with suppress(ValueError):  # not a glob, which `find_places` says
        return file.exists() and any(entry.samefile(file) for entry in base.glob("/".join(pattern)) if entry.exists())
    return False


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a glob, of which `**` stands for any number."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


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
