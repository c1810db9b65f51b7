"""Turns a composed config into a `RunConfig`, or names everything that is wrong with it at once."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from yaml import MarkedYAMLError, YAMLError

from llmtune.config.checks import check_combinations
from llmtune.config.data import SourceConfig
from llmtune.config.run import RUN_CONFIG, RunConfig
from llmtune.config.schema import SHAPED, groups, keys, known_names
from llmtune.errors import ConfigError

_NOT_TYPED = ", 'none'"
"""The method of a model that is taken as it is: `run=` sets it, nobody types it."""


def to_run_config(
    content: Mapping[str, Any], finish: Callable[[RunConfig], RunConfig] | None = None, *, begun: bool = False
) -> RunConfig:
    """The typed config of plain nested mappings.

    Args:
        content: what Hydra composed, interpolations resolved, without its own section.
        finish: puts in what is known from elsewhere, before combinations are checked.
        begun: see `check_combinations`.

    Raises:
        ConfigError: with every unknown key, wrong type, value out of range and impossible combination.
    """
    try:
        config = RUN_CONFIG.validate_json(json.dumps(content))
    except ValidationError as error:
        problems = [_sentence(detail, content) for detail in error.errors()]
        raise ConfigError(list(dict.fromkeys(problems))) from None
    config = finish(config) if finish else config
    problems = check_combinations(config, begun=begun)
    if problems:
        raise ConfigError(problems)
    return config


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The config as nested dicts, lists and scalars."""
    return RUN_CONFIG.dump_python(config, mode="json")


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def nearest(name: str, known: list[str]) -> str:
    """` Did you mean X?` for the nearest known name, or nothing where none is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {found[0]}?" if found else ""


def unreadable(file: str, error: YAMLError | UnicodeDecodeError) -> str:
    """One line on a file that isn't YAML: the line of the file and what is wrong there."""
    mark = (error.problem_mark or error.context_mark) if isinstance(error, MarkedYAMLError) else None
    if isinstance(error, MarkedYAMLError) and mark is not None:
        return f"{file}:{mark.line + 1}: isn't YAML ({error.problem or error.context}); mend the file."
    return f"{file}: isn't YAML ({' '.join(str(error).split())}); mend the file."


def _sentence(detail: ErrorDetails, content: Mapping[str, Any]) -> str:
    location = [str(part) for part in detail["loc"]]
    section, shape = location[0], None
    if section in SHAPED and len(location) > 1:
        shape = location.pop(1)
    if location[:2] == ["data", "sources"]:
        return _sources_sentence(detail, location[2:])
    location = location[:2] if detail["type"] != "unexpected_keyword_argument" else location
    key, value = ".".join(location), detail.get("input")
    if detail["type"] == "unexpected_keyword_argument":
        return _unknown(key, shape)
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        allowed = detail.get("ctx", {}).get("expected_tags", "").replace(_NOT_TYPED, "")
        found = value.get(SHAPED[section]) if isinstance(value, dict) else value
        return f"{key}.{SHAPED[section]}={found}: must be one of {allowed}."
    if detail["type"] == "missing":
        return f"{key}: is missing; set it."
    if section in content and isinstance(content[section], Mapping) and len(location) > 1:
        value = content[section].get(location[1], value)
    return f"{key}={_shown(value)}: {_expectation(detail)}."


def _sources_sentence(detail: ErrorDetails, location: list[str]) -> str:
    """What is wrong with the list of a mixture's sources, or with one of them."""
    value = detail.get("input")
    if not location:
        return f"data.sources={_shown(value)}: should be a list of mappings such as [{{path: a.jsonl, weight: 2}}]."
    source, leaf = f"data.sources[{location[0]}]", ".".join(location[1:])
    if not leaf:
        path = value if isinstance(value, str) else "a.jsonl"
        return f"{source}={_shown(value)}: should be a mapping such as {{path: {path}}}."
    if detail["type"] != "unexpected_keyword_argument":
        return f"{source}.{leaf}={_shown(value)}: {_expectation(detail)}."
    names = [entry.name for entry in dataclasses.fields(SourceConfig)]
    suggestion = _nearest_in(f"{source}.{leaf}", names)
    return f"{source}.{leaf}: there is no such key.{suggestion or f' Known here: {_listed(names)}.'}"


def _shown(value: Any) -> str:
    return "null" if value is None else value if isinstance(value, str) else json.dumps(value)


def _expectation(detail: ErrorDetails) -> str:
    message = detail["msg"]
    return (message[0].lower() + message[1:]).replace("input should", "should")


def _unknown(key: str, shape: str | None) -> str:
    if key == "experiment":
        return (
            "experiment: a file's keys stand beneath `experiment` instead of at the top; put `# @package _global_` on "
            "the first line of experiments/NAME.yaml."
        )
    section = key.rpartition(".")[0]
    here, any_shape = known_names(section, shape), known_names(section)
    if key in any_shape:
        return f"{key}: {section}={shape} has no such key. It has: {_listed(here)}."
    elsewhere = [known.name for known in keys()] if not any_shape or not section else []
    top = [*groups(), *_names(known_names(""))] if not section else []
    suggestion = _nearest_in(key, top or here) or _nearest_in(key, any_shape) or nearest(key, elsewhere)
    known = top or _names(here)
    listing = f" Known here: {', '.join(known)}." if known and not suggestion else ""
    return f"{key}: there is no such key.{suggestion}{listing}"


def _nearest_in(key: str, names: list[str]) -> str:
    section, _, leaf = key.rpartition(".")
    found = difflib.get_close_matches(leaf, _names(names), n=1, cutoff=0.6)
    return f" Did you mean {'.'.join(filter(None, (section, *found)))}?" if found else ""


def _listed(names: list[str]) -> str:
    return ", ".join(_names(names))


def _names(names: list[str]) -> list[str]:
    return [name.rpartition(".")[2] for name in names]
