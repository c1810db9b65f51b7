"""Conversations in the spellings of OpenAI and ShareGPT, as turns of one spelling."""

from collections.abc import Callable
from typing import Any

from llmtune.data.shaping.tools import calls_in
from llmtune.data.shaping.values import Fault, is_blank, kind_of, parse_json, why_not_text

_CALL = "call"
_ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")}
_ROLES |= dict.fromkeys(("human",), "user")
_ROLES |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "ai", "bot", "claude"), "assistant")
_ROLES |= dict.fromkeys(("function", "observation", "tool_response", "function_response"), "tool")
_ROLES |= dict.fromkeys(("function_call", "tool_call"), _CALL)
_ALLOWED = "has no `role` among system, developer, user, assistant, tool"
_ALLOWED_FROM = "has no `from` among system, human, gpt, function_call, observation"
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")
_OTHER_PARTS = ("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "file")
_OTHER_PARTS += ("input_file", "document", "refusal", "thinking", "tool_use", "tool_result")


def turns_in(value: Any, column: str, note: Callable[[str], None]) -> tuple[dict[str, Any], ...]:
    """The turns of a conversation.

    Each has `role`, one of system, developer, user, assistant and tool, and `content`, which is text; it may have
    `reasoning_content`, `tool_calls`, `tool_call_id` and `name`.

    Args:
        value: a list of turns, or its JSON text.
        column: where it stands.
        note: told of each key of a turn that isn't used.

    Raises:
        Fault: it isn't a conversation, or the assistant says nothing in it.
    """
    if isinstance(value, str):
        value = [] if is_blank(value) else _parsed(value, column)
    if not isinstance(value, list | tuple):
        raise Fault(f"`{column}` must be a list of turns, not {kind_of(value)}")
    if not value:
        raise Fault(f"`{column}` is empty")
    turns: list[dict[str, Any]] = []
    try:
        for turn in value:
            turns.append(_turn(turn, note))
    except Fault as fault:
        raise Fault(f"turn {len(turns) + 1} of `{column}` {fault.reason}") from None
    _check_assistant(turns, column)
    return tuple(turns)


def _check_assistant(turns: list[dict[str, Any]], column: str) -> None:
    if turns[0]["role"] == "user" and turns[-1]["role"] == "assistant" and not is_blank(turns[-1]["content"]):
        return
    first = next((turn["role"] for turn in turns if turn["role"] not in ("system", "developer")), None)
    if first == "assistant":
        raise Fault(f"the first turn of `{column}` is the assistant's; put a user turn before it")
    said = [turn for turn in turns if turn["role"] == "assistant"]
    if not said:
        raise Fault("conversation without an assistant turn", is_mistake=False)
    if all(is_blank(turn["content"]) and len(turn.keys() & {"tool_calls", "reasoning_content"}) == 0 for turn in said):
        raise Fault("conversation in which the assistant says nothing", is_mistake=False)


def _turn(turn: Any, note: Callable[[str], None]) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise Fault(f"must be an object with `role` and `content`, not {kind_of(turn)}")
    given = turn.get("role")
    if given is None:
        given = turn.get("from")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise Fault(_ALLOWED_FROM if turn.get("from") is not None and turn.get("role") is None else _ALLOWED)
    content = turn.get("content")
    if content is None:
        content = turn.get("value")
    if len(turn) == 2 and role is not _CALL and type(content) is str and why_not_text(content) is None:
        return {"role": role, "content": content}
    return _Turn(turn, note).made(role, content)


class _Turn:
    """A turn with more than a role and plain text.

    Args:
        given: as the row has it.
        note: told of each key that isn't used.
    """

    def __init__(self, given: dict[str, Any], note: Callable[[str], None]) -> None:
        self._given = given
        self._note = note
        self._used: set[str] = set()
        for one, other in (("role", "from"), ("content", "value")):
            self._used |= {one} if None not in (given.get(one), given.get(other)) else {one, other}

    def made(self, role: str, content: Any) -> dict[str, Any]:
        """The turn in our spelling."""
        is_call = role is _CALL
        turn: dict[str, Any] = {"role": "assistant" if is_call else role, "content": ""}
        if turn["role"] == "assistant":
            self._add_reasoning(turn)
        calls = calls_in(content, self._content_key, self._note) if is_call else self._calls(turn["role"])
        if not is_call and not (content is None and calls):
            turn["content"] = self._content(content)
        if calls:
            turn["tool_calls"] = calls
        self._check_weight(turn["role"])
        for key in ("tool_call_id", "name"):
            self._used.add(key)
            if (value := self._given.get(key)) is not None:
                turn[key] = self._text(key, value)
        for key, value in self._given.items():
            if value is not None and key not in self._used:
                self._note(str(key))
        return turn

    @property
    def _content_key(self) -> str:
        if self._given.get("content") is not None:
            return "content"
        spells_from = "value" in self._given or ("from" in self._given and "role" not in self._given)
        return "value" if spells_from else "content"

    def _content(self, content: Any) -> str:
        if content is None:
            raise Fault(f"has no `{self._content_key}`")
        if not isinstance(content, list | tuple):
            return self._text(self._content_key, content)
        return "".join(_part(part, number) for number, part in enumerate(content, start=1))

    def _calls(self, role: str) -> list[dict[str, Any]]:
        key = next((key for key in ("tool_calls", "function_call") if self._given.get(key)), None)
        empty = [name for name in ("tool_calls", "function_call") if not self._given.get(name)]
        self._used.update(empty)
        if key is None:
            return []
        if role != "assistant":
            raise Fault(f"has `{key}`, which only the assistant's turns can have")
        self._used.add(key)
        return calls_in(self._given[key], key, self._note)

    def _check_weight(self, role: str) -> None:
        """Refuse a turn that isn't to be learnt: every turn of the assistant's is."""
        weight = self._given.get("weight")
        if weight == 1 or role != "assistant":
            self._used.add("weight")
        elif weight is not None:
            named = "a `weight` of zero" if weight == 0 else "a `weight` other than one"
            raise Fault(
                f"has {named}, which isn't followed; leave the turn's text to a user or system turn, or set "
                "data.on_bad_record=skip"
            )

    def _add_reasoning(self, turn: dict[str, Any]) -> None:
        for key in _REASONING:
            value = self._given.get(key)
            if value is None or value == "":
                self._used.add(key)
            elif "reasoning_content" not in turn:
                self._used.add(key)
                turn["reasoning_content"] = self._text(key, value)

    @staticmethod
    def _text(key: str, value: Any) -> str:
        reason = why_not_text(value)
        if reason:
            raise Fault(f"has a `{key}` that {reason}")
        return value


def _part(part: Any, number: int) -> str:
    if not isinstance(part, dict):
        raise Fault(
            f"has a `content` whose part {number} must be an object with `type` and `text`, not {kind_of(part)}"
        )
    kind = part.get("type")
    if kind not in _TEXT_PARTS:
        named = f"is of the type {kind}" if kind in _OTHER_PARTS else "is of another type"
        raise Fault(f"has a `content` whose part {number} {named}; only text is learnt")
    reason = why_not_text(part.get("text"))
    if reason:
        raise Fault(f"has a `content` whose part {number} has a `text` that {reason}")
    return part["text"]


def _parsed(text: str, column: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        raise Fault(f"`{column}` must be a list of turns or its JSON text; this is text that isn't JSON") from None
