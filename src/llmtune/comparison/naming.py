"""Short names of settings: what varies, in words that fit a table."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

_BARE = ("model.name", "method.name")
"""Keys whose value says by itself what it is; they stand first."""
_SHORT = {
    "method.name": "method",
    "model.name": "model",
    "data.path": "data",
    "data.source": "data",
    "data.id": "data",
    "source_weights": "checkpoint",
    "hardware.kind": "hardware",
}
"""Keys whose last part alone says too little."""

_COUNTS, _ALL = "data.num_", "all"
"""Beginning of the keys that take so many examples at most, and what null means there."""


def row_names(rows: Sequence[Mapping[str, Any]], method: str) -> list[str]:
    """A name for each row, no two alike: `lora`, `lora rank=8`, `learning_rate=0.0005`.

    Args:
        rows: each row's values of what varies, dotted key to value; rows differ in them.
        method: what a row is called where nothing varies.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    texts = {key: value_texts([row[key] for row in rows if key in row], key) for key in keys}
    short = short_keys(keys)
    names: list[str] = []
    for row in rows:
        bare = [texts[key][repr(row[key])] for key in _BARE if key in row]
        named = [f"{short[key]}={texts[key][repr(row[key])]}" for key in keys if key in row and key not in _BARE]
        names.append(" ".join([*bare, *named]) or method)
    return [name if names.index(name) == place else f"{name} ({place + 1})" for place, name in enumerate(names)]


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key's last part, or its whole where that would be taken for another's."""
    short = {key: _SHORT.get(key, key.rpartition(".")[2]) for key in keys}
    shown = list(short.values())
    return {key: name if shown.count(name) == 1 else key for key, name in short.items()}


def value_texts(values: Sequence[Any], key: str) -> dict[str, str]:
    """Each value in few characters, no two alike; keyed by its `repr`.

    A path is shown by its file's name, with as many folders before it as tell it from the others.

    Args:
        values: those that a key takes.
        key: the key, dotted.
    """
    paths = sorted({value for value in values if isinstance(value, str) and PurePath(value).is_absolute()})
    texts = {repr(value): _text(value) for value in values} | {repr(path): _short_path(path, paths) for path in paths}
    if key.startswith(_COUNTS):
        texts |= {repr(None): _ALL}
    alike = list(texts.values())
    return {value: text if alike.count(text) == 1 else value.strip("'\"") for value, text in texts.items()}


def _short_path(path: str, others: Sequence[str]) -> str:
    parts = PurePath(path).parts
    for count in range(1, len(parts)):
        end = parts[-count:]
        if sum(PurePath(other).parts[-count:] == end for other in others) == 1:
            return "/".join(end)
    return path


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "+".join(_text(part) for part in value) or "none"
    if isinstance(value, Mapping):  # a source of a mixture
        name = PurePath(str(value.get("path") or value.get("id") or "source")).name
        weight = value.get("weight", 1.0)
        return name if weight == 1.0 else f"{weight:g}x{name}"
    return str(value)
