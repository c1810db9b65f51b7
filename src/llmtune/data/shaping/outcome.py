"""What becomes of a row before any other row is looked at."""

import re
from dataclasses import dataclass

_COLUMN = re.compile(r" at column \d+")
_NUMBER = re.compile(r"(?<![\w`\\.-])\d[\d,]*(?![\w`])")
"""Not part of a name: neither of `column_2` nor of UTF-8."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that gives no example."""

    line: int
    reason: str
    """Never quotes the row. Two of the same fault differ in numbers alone."""
    is_mistake: bool = True
    """Whether `data.on_bad_record` decides; False for what holds no example by right, such as an empty text."""


def fault_in(reason: str) -> str:
    """The fault that a reason names, without the numbers that hold for one row alone, so that it can be counted."""
    return _NUMBER.sub("N", _COLUMN.sub("", reason))
