"""One row of JSON, and why it isn't one."""

import json
from typing import Any

from llmtune.data.reading.blocks import Entry, NoRow, Row

MOST_LEVELS = 100
"""Levels of lists and objects in a row; what comes after must be able to go down all of them."""
BLANK = "blank line"
ZERO_BYTE = "holds a zero byte, so the file is binary or damaged, not text"
NOT_UTF_8 = (
    "isn't UTF-8; if the file is Latin-1 or Windows-1252, convert it with: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
)
_TOO_DEEP = f"nested too deeply, more than {MOST_LEVELS} levels"


def line_entry(line: int, content: bytes) -> Entry:
    """The row that a line holds.

    Args:
        line: its number.
        content: its bytes without the line end.
    """
    try:
        text = content.decode().removeprefix("\ufeff")  # of files that were put together
    except UnicodeDecodeError:
        return NoRow(line, why_not_text(content))
    if not text.strip():
        return NoRow(line, BLANK, is_mistake=False)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return NoRow(line, ZERO_BYTE if "\0" in text else f"not valid JSON: {json_reason(error)}")
    return NoRow(line, f"not valid JSON: {_TOO_DEEP}") if is_too_deep(row, text) else Row(line, row)


def json_reason(error: Exception) -> str:
    """What is wrong, with its column where that is known."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return _TOO_DEEP if isinstance(error, RecursionError) else "a number is too long"


def is_too_deep(row: Any, text: str) -> bool:
    """Whether a row has more than `MOST_LEVELS` levels.

    Args:
        row: the value.
        text: what it was read from.
    """
    if text.count("[") + text.count("{") <= MOST_LEVELS:
        return False
    level = [row]
    for _ in range(MOST_LEVELS + 1):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def why_not_text(content: bytes) -> str:
    """Why bytes are no text, with the cure."""
    return ZERO_BYTE if b"\0" in content else NOT_UTF_8
