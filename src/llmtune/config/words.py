"""Types and values of the config in words that a person reads."""

import json
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_NAMES = {bool: "true or false", int: "int", float: "number", str: "text"}


def type_in_words(annotation: Any) -> str:
    """A field's type: `int >= 1`, `one of cosine, linear`, `list of text`, `text or null`."""
    parts = list(_parts(annotation))
    words = [_one(part, bounds) for part, bounds in parts if part is not NoneType]
    nullable = ["null"] if any(part is NoneType for part, _ in parts) else []
    return " or ".join(words + nullable)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The names that a field may take; empty where it takes more than a few names."""
    found: list[str] = []
    for part, _ in _parts(annotation):
        if get_origin(part) is Literal:
            found += [str(choice) for choice in get_args(part)]
        elif part is bool:
            found += ["true", "false"]
    return tuple(found)


def value_in_words(value: Any) -> str:
    """A value as YAML; an interpolation of another key as that key's name."""
    if isinstance(value, str):
        other = value.removeprefix("${").removesuffix("}")
        return f"that of {other}" if value == f"${{{other}}}" else value
    if isinstance(value, float):
        return _number(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _number(value: float) -> str:
    """A short form that YAML reads back as the same number: `0.05`, `2e-4`."""
    if value != 0 and abs(value) < 0.01:
        digits, _, exponent = f"{value:e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:g}"


def _parts(annotation: Any, bounds: str = "") -> Iterator[tuple[Any, str]]:
    """The members of a union, each with the bounds that its marks set."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        yield from _parts(inner, _bounds(marks))
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _parts(part, bounds)
    else:
        yield annotation, bounds


def _bounds(marks: list[Any]) -> str:
    found: dict[str, Any] = {}
    for mark in marks:
        for rule in (mark, *getattr(mark, "metadata", ())):
            signs = {">": "gt", ">=": "ge", "<": "lt", "<=": "le"}
            found |= {sign: getattr(rule, name) for sign, name in signs.items() if hasattr(rule, name)}
    return ", ".join(f"{sign} {bound:g}" for sign, bound in found.items() if bound is not None)


def _one(part: Any, bounds: str) -> str:
    if get_origin(part) is Literal:
        names = [str(choice) for choice in get_args(part)]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if get_origin(part) in (tuple, list):
        return f"list of {_NAMES.get(get_args(part)[0], 'values')}"
    return f"{_NAMES.get(part, getattr(part, '__name__', str(part)))} {bounds}".strip()
