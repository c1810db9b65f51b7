"""What an experiment's file says before it is composed."""

from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from llmtune.config.resources import option_file
from llmtune.config.validate import unreadable
from llmtune.errors import ConfigError

_DATA_OVERRIDES = ("override /data", "override data", "/data", "data")


def names_data(experiment: str) -> bool:
    """Whether an experiment says which examples it is on, in its own file or in one that it builds on.

    Args:
        experiment: the experiment's name. One that isn't there names none: composing says so.

    Raises:
        ConfigError: a file isn't YAML.
    """
    content = _content(experiment)
    data = content.get("data")
    if isinstance(data, dict) and any(data.get(key) for key in ("path", "id", "source")):
        return True
    for entry in content.get("defaults") or []:
        if isinstance(entry, dict) and any(key in entry for key in _DATA_OVERRIDES):
            return True
        if isinstance(entry, str) and entry != "_self_" and names_data(entry.rpartition("/")[2]):
            return True
    return False


def _content(experiment: str) -> dict[str, Any]:
    file = option_file("experiment", experiment)
    if file is None:
        return {}
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=get_yaml_loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(unreadable(str(file), error)) from None
    return content if isinstance(content, dict) else {}
