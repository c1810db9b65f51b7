"""One example as its source gives it, before it becomes tokens."""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Record:
    """One example: exactly one of `text`, `prompt` with `completion`, and `messages` is set."""

    source_path: str
    """File, module or data set that the example comes from."""
    source_line: int
    """Line of the file on which the example starts, counted from 1; the row for Parquet and the Hub."""
    text: str | None = None
    """Plain text: every token is supervised."""
    prompt: str | None = None
    """What the model is given."""
    completion: str | None = None
    """What it shall answer: only this is supervised."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """A conversation: only the assistant's turns are supervised. Turns have `role` and `content`, and may have
    `reasoning_content`, `tool_calls` (with arguments as objects), `tool_call_id` and `name`."""
    tools: tuple[Mapping[str, Any], ...] | None = None
    """What the conversation's assistant may call, as JSON schemas."""
    is_instruction: bool = False
    """Whether `prompt` is an instruction and `completion` the answer to it: both then become a conversation where the
    model has a chat template, and are laid out beneath headings where it has none."""
    system: str | None = None
    """System prompt of an instruction; that of a conversation is its first turn."""
    group: str | None = None
    """Examples of one group never straddle a split; None is a group of its own."""


def content_hash(record: Record) -> str:
    """Hex sha256 of what an example says, wherever it stands.

    Line endings, Unicode composition and white space at both ends of the example don't count.
    """
    if record.messages is not None:
        content: list[Any] = ["messages", _normalised(record.messages)]
        if record.tools:
            content.append(_normalised(record.tools))
    elif record.text is not None:
        content = ["text", _normalised(record.text).strip()]
    else:
        kind = "instruction" if record.is_instruction else "completion"
        content = [kind, _normalised(record.prompt).lstrip(), _normalised(record.completion).rstrip()]
        if record.system:
            content.append(_normalised(record.system))
    plain = json.dumps(content, sort_keys=record.messages is not None, ensure_ascii=False, default=str)
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def own_text(record: Record) -> str:
    """What an example says in all its parts but the system prompt and the tools, in their order, a line a part."""
    return "\n".join(_parts(record))


def whole_text(record: Record) -> str:
    """What an example says in all its parts, system prompt and tools with them, a line a part."""
    if record.messages is None and record.system is None:
        return own_text(record)
    system = [_as_text(turn.get("content")) for turn in record.messages or () if turn.get("role") in _SYSTEM_ROLES]
    tools = [_as_text(record.tools)] if record.tools else []
    return "\n".join([*tools, *system, *([record.system] if record.system else []), *_parts(record)])


def _parts(record: Record) -> list[str]:
    if record.messages is None:
        return [part for part in (record.text, record.prompt, record.completion) if part]
    turns = [turn for turn in record.messages if turn.get("role") not in _SYSTEM_ROLES]
    found = [turn.get(key) for turn in turns for key in ("reasoning_content", "content", "tool_calls")]
    return [_as_text(part) for part in found if part]


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str) if value else ""


def _normalised(value: Any) -> Any:
    """The value with one kind of line end and of Unicode composition in all its strings."""
    if isinstance(value, str):
        value = value.replace("\r\n", "\n") if "\r" in value else value
        return value if value.isascii() else unicodedata.normalize("NFC", value)
    if isinstance(value, Mapping):
        return {key: _normalised(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_normalised(inner) for inner in value]
    return value
