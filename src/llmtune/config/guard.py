"""What Hydra itself may be told: nothing that names a class or function to run, or writes a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llmtune.config.sweep_axes import take_as_typed
from llmtune.credentials import secret_in
from llmtune.errors import ConfigError

_PLUGINS = {
    "launcher": "hydra_plugins.llmtune_launcher.ProcessLauncher",
    "sweeper": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
_FIXED = {
    **{"run.dir": ".", "output_subdir": None, "callbacks": {}},
    **{"job.chdir": None, "job.env_set": {}, "job.env_copy": []},
}
"""Keys of Hydra's section that run something, or write somewhere, with the only value that they may have."""


@contextmanager
def guarded() -> Iterator[None]:
    """Within it a config that names anything to run is refused, before Hydra acts on it."""
    from hydra._internal import hydra as internal

    before, jobs = internal.ConfigLoaderImpl, dict[tuple[str, ...], DictConfig]()

    class Guarded(before):
        def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
            # Hydra composes each job twice: to see whether it can be composed, and for the launcher.
            known = jobs.pop(tuple(sweep_overrides), None)
            if known is not None:
                return known
            jobs[tuple(sweep_overrides)] = config = super().load_sweep_config(master_config, sweep_overrides)
            return config

        def load_configuration(self, config_name: str | None, *arguments: Any, **settings: Any) -> DictConfig:
            primary = self.repository.load_config(config_name) if config_name is not None else None
            if primary is not None:
                _check_search_path(primary.config)
            try:
                config = super().load_configuration(config_name, *arguments, **settings)
            except KeyError as error:  # Hydra copies what it is told to before it can be looked at
                raise ConfigError(f"hydra.job.env_copy: names {error.args[0]}, which isn't set; take it out.") from None
            _check(config)
            take_as_typed(config)
            return config

    internal.ConfigLoaderImpl = Guarded
    try:
        yield
    finally:
        internal.ConfigLoaderImpl = before


def check_holds_no_secret(content: Any) -> None:
    """Refuse a composed config that holds the value of a secret environment variable: it is recorded in full.

    Raises:
        ConfigError: names each key and the variable.
    """
    texts = [(key, secret_in(value)) for key, value in _leaves(content) if isinstance(value, str)]
    problems = [
        f"{key}: holds the value of {name}, and the config is recorded; take it out, llmtune reads what it needs from "
        "the environment."
        for key, name in texts
        if name is not None
    ]
    if problems:
        raise ConfigError(problems)


def _check_search_path(primary: Any) -> None:
    """Refuse a search path that a file brings: Hydra imports its packages before anything else can be looked at."""
    if OmegaConf.is_dict(primary) and OmegaConf.select(primary, "hydra.searchpath"):
        raise ConfigError(
            "hydra.searchpath: a file can't say where configs are read from, as Hydra imports the packages named "
            "there; take it out, or type it."
        )


def _check(config: DictConfig) -> None:
    problems = list(_problems_of_hydra(config.hydra))
    for name in config:
        if name != "hydra":
            content = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(name)]), resolve=False)
            problems += [f"{key}: {_CANT_RUN}." for key in _targets(content)]
    if problems:
        raise ConfigError(problems)


_CANT_RUN = "a config can't name a class or function to run; take it out"


def _problems_of_hydra(section: DictConfig) -> Iterator[str]:
    for plugin, known in _PLUGINS.items():
        found = OmegaConf.to_container(section[plugin], resolve=False)
        assert isinstance(found, dict)
        if found.pop("_target_", None) != known:
            yield f"hydra.{plugin}._target_: {_CANT_RUN}."
        yield from (f"hydra.{plugin}.{key}: {_CANT_RUN}." for key in _targets(found))
    for name in ("hydra_logging", "job_logging"):
        content = OmegaConf.to_container(section[name], resolve=False)
        assert isinstance(content, dict)
        if content.get("handlers") or content.get("formatters") or content.get("filters"):
            yield f"hydra.{name}: names what is written and how, which llmtune does itself; take it out."
    for key, only in _FIXED.items():
        found = OmegaConf.select(section, key)
        if (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) not in (only, None):
            yield f"hydra.{key}: can't be set, as llmtune runs nothing there and writes to the run folder; take it out."


def _targets(content: Any) -> Iterator[str]:
    """The keys `_target_`, at any depth."""
    return (key for key, _ in _leaves(content) if key.rpartition(".")[2] == "_target_")


def _leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is neither a mapping nor a list, with its key, at any depth."""
    if isinstance(content, dict):
        for name, inner in content.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list):
        for number, inner in enumerate(content):
            yield from _leaves(inner, f"{key}[{number}]")
    else:
        yield key, content
