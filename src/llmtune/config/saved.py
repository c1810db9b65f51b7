"""A run's resolved config on disk: plain YAML, read back without interpolation."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_omega_conf_dumper, get_yaml_loader

from llmtune.config.run import RunConfig
from llmtune.config.validate import to_plain, to_run_config, unreadable
from llmtune.errors import ConfigError, LlmtuneError, RunError


def config_text(config: RunConfig) -> str:
    """The config as YAML that reads back to the same values."""
    return yaml.dump(to_plain(config), Dumper=get_omega_conf_dumper(), sort_keys=False, allow_unicode=True, width=1000)


def save_config(config: RunConfig, path: Path) -> None:
    """Write the config as YAML; a reader finds the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(config_text(config), encoding="utf-8")
    temporary.replace(path)


def load_plain(path: Path) -> dict[str, Any]:
    """The config as nested dicts; `${...}` in a text stays text.

    Raises:
        RunError: there is no such file, it is damaged, or it holds no mapping.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing; the folder isn't a run folder, or the run never started")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(unreadable(str(path), error)) from None
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no config")
    return content


@lru_cache
def _loader() -> Any:
    """PyYAML's C loader where it is there (seven times as fast), with OmegaConf's rules for what is a number."""
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return type("ConfigLoader", (fast,), {"yaml_implicit_resolvers": get_yaml_loader().yaml_implicit_resolvers})


def load_config(path: Path) -> RunConfig:
    """The typed config of a run folder's file.

    Raises:
        RunError: there is no such file, it is damaged, or it holds no mapping.
        ConfigError: with every problem of its content, the file named in each.
    """
    try:
        return to_run_config(load_plain(path))
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def first_readable(paths: Iterable[Path]) -> Path | None:
    """The first of some run folders' config files that `load_config` can read; None where there is none."""
    for path in paths:
        try:
            load_config(path)
        except LlmtuneError:
            continue
        return path
    return None
