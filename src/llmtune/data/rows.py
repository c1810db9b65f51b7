"""Rows of a table or lines of a file, checked and turned into records."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from llmtune.data.records import Problems, Record

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAPES = (("messages",), ("prompt", "completion"), ("text",), ("content",))
SHAPES_IN_WORDS = "`text` or `content`, `prompt` and `completion`, or `messages`"
_LOOKALIKES = ("conversations", "instruction", "question", "input", "output", "response", "answer", "chosen")


class RowReader:
    """Turns the rows of one source into records and notes what is wrong with the others.

    Args:
        path: how problems and records name the source.
        problems: where problems are noted.
    """

    def __init__(self, path: str, problems: Problems) -> None:
        self.records: list[Record] = []
        self.skipped: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()
        self.unread_columns: set[str] = set()
        self.num_rows = 0
        self._path = path
        self._problems = problems

    def skip(self, reason: str) -> None:
        """Count a row that holds no example."""
        self.num_rows += 1
        self.skipped[reason] += 1

    def problem(self, line: int, reason: str) -> None:
        """Note that a line can't be read."""
        self._problems.add(self._path, line, reason)

    def add_text(self, line: int, text: str) -> None:
        """Take a piece of plain text as an example."""
        self.add(line, {"text": text})

    def add(self, line: int, row: Any) -> None:
        """Take a row as an example, skip it where it is empty, note a problem where it isn't valid.

        Args:
            line: where it starts.
            row: mapping from column to value; anything else is a problem.
        """
        if not isinstance(row, Mapping):
            self.problem(line, f"a row must be an object with {SHAPES_IN_WORDS}, this is {_kind(row)}")
            return
        shape = next((shape for shape in _SHAPES if all(row.get(column) is not None for column in shape)), None)
        if shape is None:
            self.problem(line, _why_no_shape(row))
            return
        self.unread_columns.update(str(column) for column in row if column not in shape)
        if shape == ("messages",):
            self._add_messages(line, row["messages"])
            return
        values = [row[column] for column in shape]
        for column, value in zip(shape, values, strict=True):
            reason = _why_not_text(value)
            if reason:
                self.problem(line, f"`{column}` {reason}")
                return
        if not values[-1].strip():
            self.skip(f"empty {shape[-1]}")
            return
        fields = dict(zip(shape, values, strict=True)) if len(shape) > 1 else {"text": values[0]}
        self._keep(Record(self._path, line, **fields), "prompt and completion" if len(shape) > 1 else shape[0])

    def _add_messages(self, line: int, messages: Any) -> None:
        reason = _why_not_messages(messages)
        if reason:
            self.problem(line, reason)
            return
        turns = tuple({key: value for key, value in turn.items() if value is not None} for turn in messages)
        if not any(turn["role"] == "assistant" for turn in turns):
            self.skip("conversation without an assistant turn")
            return
        self._keep(Record(self._path, line, messages=turns), "messages")

    def _keep(self, record: Record, form: str) -> None:
        self.num_rows += 1
        self.forms[form] += 1
        self.records.append(record)


def _why_no_shape(row: Mapping[str, Any]) -> str:
    for shape in _SHAPES:
        empty = [column for column in shape if column in row and row[column] is None]
        if empty and all(column in row for column in shape):
            return f"`{empty[0]}` is null; give it text or leave the row out"
    for given, missing in (("prompt", "completion"), ("completion", "prompt")):
        if given in row:
            return f"`{given}` stands without `{missing}`"
    known = [column for column in _LOOKALIKES if column in row]
    seen = f"; rename {', '.join(f'`{column}`' for column in known)}" if known else ""
    return f"the row has none of {SHAPES_IN_WORDS}{seen}"


def _why_not_text(value: Any) -> str | None:
    if isinstance(value, list):
        return "is a list; conversations belong in `messages`, other text in a string"
    if not isinstance(value, str):
        return f"must be text, not {_kind(value)}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair (such as \\ud83d alone), which isn't a character"
    return None


def _why_not_messages(messages: Any) -> str | None:
    if not isinstance(messages, list | tuple):
        return f"`messages` must be a list of turns, not {_kind(messages)}"
    if not messages:
        return "`messages` is empty"
    for number, turn in enumerate(messages, start=1):
        reason = _why_not_turn(turn)
        if reason:
            return f"turn {number} of `messages` {reason}"
    roles = [turn["role"] for turn in messages if turn["role"] not in ("system", "developer")]
    if roles and roles[0] == "assistant":
        return "the first turn is the assistant's; put a user turn before it"
    return None


def _why_not_turn(turn: Any) -> str | None:
    if not isinstance(turn, Mapping):
        return f"must be an object with `role` and `content`, not {_kind(turn)}"
    if "from" in turn and "role" not in turn:
        return "has `from` and `value`; rename them `role` and `content`, `human` to user and `gpt` to assistant"
    if turn.get("role") not in _ROLES:
        return f"has no `role` among {', '.join(_ROLES)}"
    content = turn.get("content")
    if content is None and turn.get("tool_calls"):
        return None
    if content is None:
        return "has no `content`"
    reason = _why_not_text(content)
    return f"has a `content` that {reason}" if reason else None


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    names |= {list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)
