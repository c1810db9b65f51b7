"""Single values of a row: whether they are text or plain JSON, and what else they are in words."""

import json
import math
from typing import Any, NoReturn

_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
_KINDS |= {list: "a list", tuple: "a list", dict: "an object", bytes: "bytes"}
_HALF_PAIR = "holds half of a surrogate pair (such as \\ud83d alone), which isn't a character"
_DEEPEST = 64
"""Levels of lists and objects in a tool or a call; what renders them goes one call deeper a level."""


class Fault(Exception):
    """Ends the reading of a row. `reason` never quotes it."""

    def __init__(self, reason: str, *, is_mistake: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_mistake = is_mistake


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    return "NaN" if _is_nan(value) else _KINDS.get(type(value), type(value).__name__)


def why_not_text(value: Any) -> str | None:
    """What is wrong with a value that should be text, as the words after its name; None where it is text."""
    if isinstance(value, str):
        return None if value.isascii() or is_unicode(value) else _HALF_PAIR
    if value is None or _is_nan(value):
        return f"is {kind_of(value)}; give it text or leave the row out"
    if isinstance(value, list | tuple):
        return "is a list; conversations belong in `messages`, other text in a string"
    return f"must be text, not {kind_of(value)}"


def text_in(row: dict[str, Any], column: str) -> str:
    """The text of a column, just as it stands.

    Raises:
        Fault: it isn't text.
    """
    value = row[column]
    if type(value) is str and value.isascii():
        return value
    reason = why_not_text(value)
    if reason:
        raise Fault(f"`{column}` {reason}")
    return value


def optional_text_in(row: dict[str, Any], column: str) -> str | None:
    """The text of a column that a row may lack; None where there is none, or nothing but white space.

    Raises:
        Fault: it isn't text.
    """
    if row.get(column) is None:
        return None
    text = text_in(row, column)
    return None if is_blank(text) else text


def is_blank(text: str) -> bool:
    """Whether text holds nothing but white space. Unlike `strip`, copies nothing."""
    return not text or text.isspace()


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it isn't JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def why_not_plain(value: Any, depth: int = 0) -> str | None:
    """What keeps a value from being written as JSON and read back the same, as the words after its name; None: nothing.

    Args:
        value: what JSON could hold, perhaps.
        depth: levels of lists and objects around it.
    """
    if isinstance(value, str):
        return None if value.isascii() or is_unicode(value) else _HALF_PAIR
    if isinstance(value, bool | int | None):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else "holds NaN or an infinite number, which JSON lacks"
    if not isinstance(value, list | dict):
        return f"holds a value that JSON lacks ({kind_of(value)})"
    if depth >= _DEEPEST:
        return "is nested too deeply"
    inner = value if isinstance(value, list) else [*value, *value.values()]
    return next((reason for part in inner if (reason := why_not_plain(part, depth + 1))), None)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def is_unicode(text: str) -> bool:
    """Whether text is made of whole characters: half of a surrogate pair isn't one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} isn't JSON")
