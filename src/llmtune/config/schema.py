"""Reads the dataclasses: which keys there are, which values are verbatim text."""

import dataclasses
import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Union, get_args, get_origin

from llmtune.config.base import VerbatimMark
from llmtune.config.run import RunConfig


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the run config."""

    name: str
    """Dotted, e.g. `data.path`."""
    owner: type
    """The dataclass that declares it."""
    verbatim: bool
    """Whether the command line takes its value as typed."""


def groups() -> tuple[str, ...]:
    """The config groups, `experiment` included, in the order of the run config."""
    names = [
        field.name for field in dataclasses.fields(RunConfig) if _dataclasses_in(_annotation(RunConfig, field.name))
    ]
    return (*names, "experiment")


@lru_cache
def keys() -> tuple[Key, ...]:
    """Every key of every group's every shape."""
    return tuple(_keys(RunConfig, ""))


def known_names(section: str, owner: str | None = None) -> list[str]:
    """Dotted names of the keys in a section; of one shape of it where `owner` names its discriminating value."""
    found = [key for key in keys() if key.name.rpartition(".")[0] == section]
    if owner is not None:
        found = [key for key in found if owner in _discriminators(key.owner)]
    return list(dict.fromkeys(key.name for key in found))


def verbatim_keys() -> frozenset[str]:
    """Names of the keys whose value is text, taken as typed."""
    return frozenset(key.name for key in keys() if key.verbatim)


def _keys(owner: type, prefix: str) -> Iterator[Key]:
    for field in dataclasses.fields(owner):
        annotation = _annotation(owner, field.name)
        children = _dataclasses_in(annotation)
        if not children:
            yield Key(prefix + field.name, owner, _is_verbatim(annotation))
        for child in children:
            yield from _keys(child, f"{prefix}{field.name}.")


def _annotation(owner: Any, name: str) -> Any:
    return next(found[name] for found in map(inspect.get_annotations, owner.__mro__) if name in found)


def _dataclasses_in(annotation: Any) -> list[type]:
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return _dataclasses_in(get_args(annotation)[0])
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return [found for part in get_args(annotation) for found in _dataclasses_in(part)]
    return []


def _is_verbatim(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return any(isinstance(mark, VerbatimMark) for mark in get_args(annotation)[1:])
    return any(_is_verbatim(part) for part in get_args(annotation))


def _discriminators(owner: type) -> list[Any]:
    return [field.default for field in dataclasses.fields(owner) if field.name in ("name", "source")]
