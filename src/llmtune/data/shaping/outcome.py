"""What becomes of a row before any other row is looked at."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that gives no example."""

    line: int
    reason: str
    """Never quotes the row. The same words for the same fault, so that they can be counted."""
    is_mistake: bool = True
    """Whether `data.on_bad_record` decides; False for what holds no example by right, such as an empty text."""
