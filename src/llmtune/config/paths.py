"""Paths as they are recorded: absolute, so that a run can be gone on with from any folder."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from llmtune.config.data import MixtureConfig
from llmtune.config.run import RunConfig

_PATHS = {"model": ("path",), "data": ("path", "eval_path", "chat_template", "write_clean"), "export": ("path",)}
_TOP = ("runs_dir", "cache_dir", "source_run", "source_weights")


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The config with each path of a file or folder made absolute from the working folder."""
    sections: dict[str, Any] = {
        name: _absolute(getattr(config, name), tuple(key for key in keys if hasattr(getattr(config, name), key)))
        for name, keys in _PATHS.items()
    }
    if isinstance(config.data, MixtureConfig):
        sources = tuple(_absolute(source, ("path",)) for source in config.data.sources)
        sections["data"] = dataclasses.replace(sections["data"], sources=sources)
    return dataclasses.replace(_absolute(config, _TOP), **sections)


def cache_folder(chosen: str | None) -> Path:
    """The folder for prepared data and converted weights: `cache_dir`, else LLMTUNE_CACHE, else the default."""
    return Path(chosen or os.environ.get("LLMTUNE_CACHE") or "~/.cache/llmtune").expanduser()


def _absolute(section: Any, keys: tuple[str, ...]) -> Any:
    found = {key: getattr(section, key) for key in keys}
    changes = {key: str(Path(path).expanduser().absolute()) for key, path in found.items() if path is not None}
    return dataclasses.replace(section, **changes)
