"""Reads the dataclasses: which keys there are, their types, defaults and meanings, which values are verbatim text."""

import dataclasses
import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Union, get_args, get_origin

from llmtune.config.base import VerbatimMark
from llmtune.config.resources import group_options, option_content
from llmtune.config.run import RunConfig
from llmtune.config.words import choices_of, type_in_words, value_in_words

SHAPED = {"method": "name", "data": "source"}
"""Groups whose options have different keys, each with the key that says which."""
_DISCRIMINATORS = tuple(SHAPED.values())


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the run config."""

    name: str
    """Dotted, e.g. `data.path`."""
    owner: type
    """The dataclass that declares it."""
    verbatim: bool
    """Whether the command line takes its value as typed."""
    shapes: tuple[str, ...] = ()
    """The shapes of the group that have it, such as `lora` and `qlora`; empty where the group has one shape only."""

    @property
    def group(self) -> str:
        """The group it belongs to; empty for a key of the whole run."""
        return self.name.rpartition(".")[0]

    @property
    def type(self) -> str:
        """Its type in words, such as `int >= 1` or `one of cosine, linear`."""
        return f"one of {', '.join(self.shapes)}" if self.names_shape else type_in_words(self._annotation)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it may take where they are a few names; else empty."""
        return self.shapes if self.names_shape else choices_of(self._annotation)

    @property
    def names_shape(self) -> bool:
        """Whether it says which shape of the group this is, as `method.name` does; the group's option sets it."""
        return bool(self.shapes) and self._leaf in _DISCRIMINATORS

    @property
    def default(self) -> str:
        """What applies where nothing is typed, as YAML: the config file's value, else the dataclass's."""
        if self.names_shape or not self.shapes:
            return self._default_in(default_option(self.group), "")
        found: dict[str, list[str]] = {}
        for shape in self.shapes:
            found.setdefault(self._default_in(_option_of(self.group, shape), shape), []).append(shape)
        if len(found) == 1:
            return next(iter(found))
        return ", ".join(f"{value} ({', '.join(shapes)})" for value, shapes in found.items())

    @property
    def meaning(self) -> str:
        """The text beneath the field, on one line."""
        return _text_beneath(self.owner, self._leaf)

    @property
    def _leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def _annotation(self) -> Any:
        return _annotation(self.owner, self._leaf)

    def _default_in(self, option: str | None, shape: str) -> str:
        content = option_content(self.group, option) if option else {}
        if self._leaf in content:
            return value_in_words(content[self._leaf])
        owner = shapes_of(self.group).get(shape, self.owner) if self.group else self.owner
        declared = next(field.default for field in dataclasses.fields(owner) if field.name == self._leaf)
        return "" if declared is dataclasses.MISSING else value_in_words(declared)


def groups() -> tuple[str, ...]:
    """The config groups, `experiment` included, in the order of the run config."""
    names = [
        field.name for field in dataclasses.fields(RunConfig) if _dataclasses_in(_annotation(RunConfig, field.name))
    ]
    return (*names, "experiment")


def default_option(group: str) -> str | None:
    """The option that a group has where none is typed; of the whole run the file that says so."""
    if not group:
        return "config"
    chosen = [entry[group] for entry in option_content("", "config")["defaults"] if group in entry]
    return chosen[0] if chosen else None


def group_meaning(group: str) -> str:
    """What a group decides, in a few words."""
    return "A named set of differences." if group == "experiment" else _text_beneath(RunConfig, group)


def shapes_of(group: str) -> dict[str, type]:
    """The dataclasses that describe a group, by the name of the shape; one without a name where there is one only."""
    found = _dataclasses_in(_annotation(RunConfig, group))
    return {(_shape(owner) if len(found) > 1 else ""): owner for owner in found}


def shapes_to_choose(group: str) -> tuple[str, ...]:
    """The shapes of a group that one of its options has; empty where the group has one shape only."""
    if not group:
        return ()
    return tuple(shape for shape in shapes_of(group) if shape and _option_of(group, shape))


def described_keys(section: str) -> list[Key]:
    """The keys of a section, each name once and with all the shapes that have it."""
    found: dict[str, Key] = {}
    for key in keys():
        if key.group == section:
            first = found.setdefault(key.name, key)
            found[key.name] = dataclasses.replace(first, shapes=tuple(dict.fromkeys(first.shapes + key.shapes)))
    return list(found.values())


@lru_cache
def keys() -> tuple[Key, ...]:
    """Every key of every group's every shape."""
    return tuple(_keys(RunConfig, "", ()))


def known_names(section: str, owner: str | None = None) -> list[str]:
    """Dotted names of the keys in a section; of one shape of it where `owner` names its discriminating value."""
    found = [key for key in keys() if key.name.rpartition(".")[0] == section]
    if owner is not None:
        found = [key for key in found if owner in _discriminators(key.owner)]
    return list(dict.fromkeys(key.name for key in found))


def verbatim_keys() -> frozenset[str]:
    """Names of the keys whose value is text, taken as typed."""
    return frozenset(key.name for key in keys() if key.verbatim)


def _keys(owner: type, prefix: str, shapes: tuple[str, ...]) -> Iterator[Key]:
    for field in dataclasses.fields(owner):
        annotation = _annotation(owner, field.name)
        children = _dataclasses_in(annotation)
        if not children:
            yield Key(prefix + field.name, owner, _is_verbatim(annotation), shapes)
        for child in children:
            yield from _keys(child, f"{prefix}{field.name}.", (_shape(child),) if len(children) > 1 else ())


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
    return [field.default for field in dataclasses.fields(owner) if field.name in _DISCRIMINATORS]


def _shape(owner: type) -> str:
    found = _discriminators(owner)
    return str(found[0]) if found else ""


@lru_cache
def _option_of(group: str, shape: str) -> str | None:
    """The config file that describes a shape: the one with its name, else the first that chooses it."""
    names = sorted(group_options(group), key=lambda name: name != shape)
    return next((name for name in names if shape in map(option_content(group, name).get, _DISCRIMINATORS)), None)


def _text_beneath(owner: Any, name: str) -> str:
    described = [base.__pydantic_fields__ for base in owner.__mro__ if hasattr(base, "__pydantic_fields__")]
    texts = [fields[name].description for fields in described if name in fields and fields[name].description]
    return " ".join(texts[0].split()) if texts else ""
