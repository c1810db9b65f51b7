"""Teaches Hydra where our files are: `experiments/` as the group `experiment`, and the working folder's own."""

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin

from llmtune.config.resources import resource_dir

_GROUP = "experiment"


class ExperimentSource(FileConfigSource):
    """Serves the files of a flat folder as the config group `experiment`."""

    @staticmethod
    def scheme() -> str:
        """The prefix of such an entry in Hydra's search path."""
        return "experiments"

    def load_config(self, config_path: str) -> ConfigResult:
        """Load `experiment/NAME` from the folder's `NAME.yaml`."""
        return super().load_config(_inside(config_path))

    def available(self) -> bool:
        """Whether the folder is there."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether the path is the root or the group itself."""
        return config_path in ("", _GROUP)

    def is_config(self, config_path: str) -> bool:
        """Whether `experiment/NAME` is a file."""
        return config_path.startswith(f"{_GROUP}/") and super().is_config(_inside(config_path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The group at the root, the experiments' names in the group."""
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else [_GROUP]
        if results_filter == ObjectType.GROUP:
            return []
        return sorted(file.stem for file in Path(self.path).glob("*.yaml"))


def _inside(config_path: str) -> str:
    return config_path.removeprefix(f"{_GROUP}/")


class LlmtuneSearchPath(SearchPathPlugin):
    """Adds the experiments, and `./conf` and `./experiments` of the working folder where it has them."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append our entries; the working folder's come first, so that its files win."""
        own_conf, own_experiments = Path("conf").resolve(), Path("experiments").resolve()
        if own_conf.is_dir() and own_conf != resource_dir("conf"):
            search_path.prepend("working-folder", f"file://{own_conf}")
        if own_experiments.is_dir() and own_experiments != resource_dir("experiments"):
            search_path.append("working-folder-experiments", f"experiments://{own_experiments}")
        search_path.append("llmtune-experiments", f"experiments://{resource_dir('experiments')}")


def register() -> None:
    """Register both with Hydra; doing it twice is harmless."""
    plugins = Plugins.instance()
    plugins.register(ExperimentSource)
    plugins.register(LlmtuneSearchPath)
