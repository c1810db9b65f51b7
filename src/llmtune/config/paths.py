"""Paths as they are recorded: absolute, so that a run can be gone on with from any folder."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmtune.config.data import MixtureConfig
from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError, explained

_PATHS = {
    "model": ("path",),
    "data": ("path", "eval_path", "chat_template", "write_clean"),
    "evaluate": ("general_path",),
    "export": ("path",),
}
_TOP = ("runs_dir", "cache_dir", "source_run", "source_weights")


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The config with each path of a file or folder made absolute from the working folder.

    Raises:
        ConfigError: a path begins with a user that isn't there, or can't be written to because of what is there.
    """
    sections: dict[str, Any] = {
        name: _absolute(getattr(config, name), name, tuple(key for key in keys if hasattr(getattr(config, name), key)))
        for name, keys in _PATHS.items()
    }
    if isinstance(config.data, MixtureConfig):
        numbered = enumerate(config.data.sources)
        sources = tuple(_absolute(source, f"data.sources[{number}]", ("path",)) for number, source in numbered)
        sections["data"] = dataclasses.replace(sections["data"], sources=sources)
    changed = dataclasses.replace(_absolute(config, "", _TOP), **sections)
    problems = list(_in_the_way(changed))
    if problems:
        raise ConfigError(problems)
    return changed


def _in_the_way(config: RunConfig) -> Iterator[str]:
    """What stands where the config has something written."""
    clean = config.data.write_clean
    if clean is not None and Path(clean).is_dir():
        yield f"data.write_clean={clean}: is a folder; name a file."
    places = [("runs_dir", config.runs_dir), ("cache_dir", config.cache_dir), ("export.path", config.export.path)]
    for key, place in [*places, ("data.write_clean", clean)]:
        folders = [Path(place), *Path(place).parents][key == "data.write_clean" :] if place is not None else []
        file = next((part for part in folders if part.is_file()), None)
        if file is not None:
            yield f"{key}={place}: {file} is a file, not a folder; choose another place."


def cache_folder(chosen: str | None) -> Path:
    """The folder for prepared data and converted weights: `cache_dir`, else LLMTUNE_CACHE, else the default."""
    return _expanded(chosen or os.environ.get("LLMTUNE_CACHE") or "~/.cache/llmtune", "cache_dir")


def usable_cache_folder(chosen: str | None) -> Path:
    """The same folder, made where it isn't there yet.

    Raises:
        ConfigError: it can't be made or written to.
    """
    folder = cache_folder(chosen)
    with writing("cache_dir", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextmanager
def writing(key: str, place: Path) -> Iterator[None]:
    """Name the key where the system refuses to write to its place; errors on other files pass through.

    Args:
        key: config key.
        place: the file or folder that it names.

    Raises:
        ConfigError: the system refused.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if named is not None and not _belongs(Path(str(named)).absolute(), place.absolute()):
            raise
        why = explained(OSError(error.errno, "")) or f"{(error.strerror or str(error)).lower()}: choose another place"
        raise ConfigError(f"{key}={place}: can't be written to: {why}") from error


def _belongs(file: Path, place: Path) -> bool:
    """Whether a file lies in a place, leads to it, or is the place's content under another name for a while."""
    temporary = file.parent == place.parent and place.name in file.name
    return temporary or file.is_relative_to(place) or place.is_relative_to(file)


def _absolute(section: Any, prefix: str, keys: tuple[str, ...]) -> Any:
    found = {key: getattr(section, key) for key in keys}
    changes = {}
    for key, path in found.items():
        if path is not None:
            changes[key] = str(_expanded(path, f"{prefix}.{key}".lstrip(".")).absolute())
    return dataclasses.replace(section, **changes)


def _expanded(path: str, key: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{key}={path}: there is no such user; write the path without ~.") from None
