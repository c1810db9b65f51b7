"""Which shape a source's keys ask for, which columns they name, and what of that can't work."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Literal

import yaml
from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT
from llmtune.config.data import RowConfig, SourceConfig

COLUMN_KEYS = {
    "messages": ("messages_column",),
    "completion": ("prompt_column", "completion_column"),
    "instruction": ("instruction_column", "input_column", "output_column"),
    "text": ("text_column",),
}
"""The keys that only one shape reads. Each decides the shape where it is set."""
DEFAULT_COLUMNS = {
    "messages_column": ("messages", "conversations", "conversation"),
    "prompt_column": ("prompt",),
    "completion_column": ("completion",),
    "instruction_column": ("instruction",),
    "input_column": ("input",),
    "output_column": ("output",),
    "text_column": ("text", "content"),
    "system_column": ("system",),
    "tools_column": ("tools",),
}
"""Columns that a key stands for while it is null: the first that a row has."""
_SHARED_KEYS = {"system_column": ("messages", "instruction"), "tools_column": ("messages",)}
"""Keys that don't decide between shapes, and the shapes that read them."""
COLUMN = "COLUMN"
"""Stands for a column's name that isn't known."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class EvalRowConfig(RowConfig):
    """How the rows of `data.eval_path` are read."""

    keys_in: Literal["data", "sources", "nowhere"] = "data"
    """Where keys are typed that say so: for all data, in each source of a mixture, or they can't be."""


def column_names(rows: RowConfig, key: str) -> tuple[str, ...]:
    """The columns that a key stands for, in the order in which a row is searched for them."""
    named = getattr(rows, key)
    return DEFAULT_COLUMNS[key] if named is None else (named,)


def possible_shapes(rows: RowConfig) -> tuple[str, ...]:
    """The shapes that a source's rows may have: one where its keys decide that."""
    if rows.shape != "auto":
        return (rows.shape,)
    named = tuple(shape for shape, keys in COLUMN_KEYS.items() if _named(rows, keys))
    readers = [shapes for key, shapes in _SHARED_KEYS.items() if _named(rows, (key,))]
    return named or tuple(shape for shape in COLUMN_KEYS if all(shape in shapes for shapes in readers))


def named_columns(rows: RowConfig) -> dict[str, str]:
    """The keys that name a column to learn from, with their columns."""
    return _named(rows, tuple(DEFAULT_COLUMNS))


def as_typed(rows: RowConfig, values: Mapping[str, str]) -> str:
    """Keys of a source with their values, as a person types them: on a command line, or in a mixture's YAML."""
    in_yaml = "{" + ", ".join(f"{key}: {_in_yaml(value)}" for key, value in values.items()) + "}"
    if isinstance(rows, SourceConfig):
        return f"{in_yaml} in data.sources"
    if isinstance(rows, EvalRowConfig) and rows.keys_in != "data":
        return f"{in_yaml} in every one of data.sources"
    return " ".join(shlex.quote(f"data.{key}={value}") for key, value in values.items())


def _in_yaml(text: str) -> str:
    """Text as YAML has it in a mapping, quoted only where it must be."""
    try:
        is_plain = yaml.safe_load(f"{{key: {text}}}") == {"key": text}
    except yaml.YAMLError:
        is_plain = False
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def how_to_set(rows: RowConfig, *choices: Mapping[str, str]) -> str:
    """What to do so that a source's rows are read: one of these choices of keys and values."""
    if not isinstance(rows, EvalRowConfig) or rows.keys_in == "data":
        return f"set {' or '.join(as_typed(rows, values) for values in choices)}"
    if rows.keys_in == "sources":
        return f"set {' or '.join(as_typed(rows, values) for values in choices)}, or rename the test file's columns"
    named = {key: column for key, column in choices[0].items() if key in DEFAULT_COLUMNS and column != COLUMN}
    renamed = " and ".join(f"`{column}` to `{DEFAULT_COLUMNS[key][0]}`" for key, column in named.items())
    return f"rename {renamed} in the test file" if renamed else "give the test file the columns of one of them"


def find_wrong_columns(rows: RowConfig) -> list[str]:
    """Every mix of `shape` and columns that can't work, a sentence each."""
    return list(_wrong_columns(rows))


def _wrong_columns(rows: RowConfig) -> Iterator[str]:
    prefix = "" if isinstance(rows, SourceConfig) else "data."
    named = {shape: _named(rows, keys) for shape, keys in COLUMN_KEYS.items()}
    asked = [shape for shape, values in named.items() if values]
    if rows.shape == "auto" and len(asked) > 1:
        groups = [_listed(prefix, named[shape]) for shape in asked]
        yield f"{' with '.join(groups)}: belong to rows of different shapes ({', '.join(asked)}); set those of one."
        return
    for shape in asked if rows.shape != "auto" else ():
        if shape != rows.shape:
            values = _listed(prefix, named[shape])
            yield f"{values}: isn't read with {prefix}shape={rows.shape}; leave it out, or set {prefix}shape={shape}."
    shapes = possible_shapes(rows)
    for key, readers in _SHARED_KEYS.items():
        values = _named(rows, (key,))
        if values and not set(shapes) & set(readers):
            yield f"{_listed(prefix, values)}: is read only with {prefix}shape={' or '.join(readers)}; leave it out."
    if len(shapes) == 1:
        yield from _named_twice(rows, shapes[0], prefix)


def _named_twice(rows: RowConfig, shape: str, prefix: str) -> Iterator[str]:
    keys = (*COLUMN_KEYS[shape], *(key for key, readers in _SHARED_KEYS.items() if shape in readers))
    first: dict[str, str] = {}
    for key in keys:
        column = column_names(rows, key)[0]
        other = first.setdefault(column, key)
        if other != key:
            yield f"{prefix}{other} and {prefix}{key}: both name the column {column}; each needs one of its own."


def _named(rows: RowConfig, keys: tuple[str, ...]) -> dict[str, str]:
    return {key: getattr(rows, key) for key in keys if getattr(rows, key) is not None}


def _listed(prefix: str, values: Mapping[str, str]) -> str:
    return " and ".join(f"{prefix}{key}={value}" for key, value in values.items())
