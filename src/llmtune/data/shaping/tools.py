"""Tools that a conversation may call, and the calls that it makes."""

from collections.abc import Callable
from typing import Any

from llmtune.data.shaping.values import Fault, kind_of, parse_json, why_not_plain

_CALL_KEYS = ("id", "type", "function", "name", "arguments")
_NULL_MEANS_NULL = ("default", "const")
"""Words of a JSON schema that may well be null; at the others null is what a table puts where a row has no value."""


def tools_in(row: dict[str, Any], column: str) -> tuple[dict[str, Any], ...] | None:
    """The tools of a conversation, given as a list or as its JSON text; None where there are none.

    Raises:
        Fault: they aren't a list of objects.
    """
    value = row.get(column)
    if isinstance(value, str):
        value = _parsed(value, f"`{column}`") if value.strip() else None
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise Fault(f"`{column}` must be a list of tools or its JSON text, not {kind_of(value)}")
    for number, tool in enumerate(value, start=1):
        if not isinstance(tool, dict):
            raise Fault(f"tool {number} of `{column}` must be an object, not {kind_of(tool)}")
        reason = why_not_plain(tool)
        if reason:
            raise Fault(f"tool {number} of `{column}` {reason}")
    return tuple(_without_nulls(tool) for tool in value) or None


def calls_in(value: Any, key: str, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Calls as chat templates want them: `type`, `function` with `name` and `arguments` as an object, `id` where given.

    Args:
        value: a call or a list of calls, with or without the object around `name` and `arguments`, or their JSON text.
        key: what the turn names it.
        note: told of each key that isn't used.

    Raises:
        Fault: they aren't calls; the reason goes on from the turn's name.
    """
    if isinstance(value, str):
        value = _parsed(value, f"has a `{key}` that")
    calls = value if isinstance(value, list | tuple) else [value]
    return [_call(call, key, note) for call in calls]


def _call(call: Any, key: str, note: Callable[[str], None]) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise Fault(f"has a `{key}` with a call that must be an object, not {kind_of(call)}")
    if call.get("type", "function") not in ("function", None):
        raise Fault(f"has a `{key}` with a call of another `type` than function")
    function = call if call.get("function") is None else call["function"]
    if not isinstance(function, dict):
        raise Fault(f"has a `{key}` whose `function` must be an object, not {kind_of(function)}")
    name, call_id = function.get("name"), call.get("id")
    if not isinstance(name, str) or not name:
        raise Fault(f"has a `{key}` with a call that has no `name`")
    if not isinstance(call_id, str | None):
        raise Fault(f"has a `{key}` whose `id` must be text, not {kind_of(call_id)}")
    made: dict[str, Any] = {} if call_id is None else {"id": call_id}
    made |= {"type": "function", "function": {"name": name, "arguments": _arguments(function, key)}}
    reason = why_not_plain(made)
    if reason:
        raise Fault(f"has a `{key}` that {reason}")
    given = [*call.items(), *(function.items() if function is not call else ())]
    for name, value in given:
        if value is not None and name not in _CALL_KEYS:
            note(f"{key}.{name}")
    return made


def _arguments(function: dict[str, Any], key: str) -> dict[str, Any]:
    given = function.get("arguments")
    if isinstance(given, str):
        given = _parsed(given, f"has a `{key}` whose `arguments`")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Fault(f"has a `{key}` whose `arguments` must be an object or its JSON text, not {kind_of(given)}")
    return given


def _parsed(text: str, name: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        raise Fault(f"{name} is text that isn't JSON; write it with a JSON writer") from None


def _without_nulls(value: Any) -> Any:
    """A schema as its author wrote it: tables give every tool the properties of all others, as null."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if inner is not None or key in _NULL_MEANS_NULL}
        return {key: _without_nulls(inner) for key, inner in kept.items()}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
