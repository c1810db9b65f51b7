"""Personal data and secrets in records: e-mail addresses, phone, card and account numbers, keys.

What is found is personal by its shape: check digits, prefixes, lengths. Names, street addresses and what only its
meaning makes personal isn't found. Keys of objects, such as those of a tool's arguments, are looked at like their
values: a chat template writes both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, count
from typing import Any, NamedTuple

from llmtune.data.cleaning.personal_data_emails import emails
from llmtune.data.cleaning.personal_data_keys import keys
from llmtune.data.cleaning.personal_data_numbers import numbers
from llmtune.data.records import Record

KINDS: tuple[str, ...] = ("email", "phone", "card", "iban", "key")
"""What is looked for. A placeholder is the kind in capitals and brackets: `[EMAIL]`."""

_SHORTEST = 6
_OWN_KEYS = frozenset(
    (
        *("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name"),
        *("id", "type", "function", "arguments", "description", "parameters", "properties", "required"),
    )
)
"""Keys that nearly every conversation with tools has; none needs to be searched."""
_BORDER = "\n\0\n"
"""What nothing that is looked for reaches across, and what hides nothing beside it."""
_CLASS_MEMBERS = {
    "0": "0123456789",
    "a": "abcdefghijklmnopqrstuvwxyzABCDEFGHKLMNOPQRSTUVWXYZ",
    "_": "_-IJ",
    "=": "=:",
    "+": "!#$%&*+?@^~",
    " ": " ().\\",
    '"': "\"'`",
}
_CLASSES = str.maketrans({member: name for name, members in _CLASS_MEMBERS.items() for member in members})
_TABLE = bytes(range(256)).decode("latin-1").translate(_CLASSES).encode("latin-1")


class Found(NamedTuple):
    """Where personal data stands in a text."""

    kind: str
    """One of `KINDS`."""
    start: int
    end: int
    """Behind its last character."""


def find_personal_data(record: Record) -> list[str]:
    """The kinds of personal data in a record, one entry an occurrence."""
    texts = list(_strings(_parts(record)))
    # Most records hold none, and one search through all of their texts is several times as fast as one in each.
    if len(texts) > 1 and not spans(_BORDER.join(texts)):
        return []
    return [found.kind for text in texts for found in spans(text)]


def mask_personal_data(record: Record) -> Record:
    """The record with a placeholder in the place of each piece of personal data.

    Keys of an object that would be the same then are told apart by a number, such as `[EMAIL] 2`. Nothing is found in
    what comes back. It is the same object where nothing was found.
    """
    if not find_personal_data(record):
        return record
    return replace(record, **{name: _masked(value) for name, value in _parts(record).items()})


def spans(text: str) -> list[Found]:
    """The personal data in a text, in its order; what overlaps is one."""
    if len(text) < _SHORTEST:
        return []
    # A byte a character, so that places are the text's: a search for one literal byte is several times as fast as one
    # for a set of characters.
    classes = text.encode("ascii", "replace").translate(_TABLE)
    found = [Found("key", start, end) for start, end in keys(text, classes)]
    behind_keys = {key.end for key in found}
    found += [Found("email", start, end) for start, at, end in emails(text) if at not in behind_keys]
    found += [Found(kind, start, end) for kind, start, end in numbers(text, classes)]
    return _merged(found) if len(found) > 1 else found


def _merged(found: list[Found]) -> list[Found]:
    """Where pieces overlap, one from the first's start to the last's end, so that masking leaves no rest of any."""
    merged: list[Found] = []
    for piece in sorted(found, key=lambda one: one.start):
        if merged and piece.start < merged[-1].end:
            last = merged[-1]
            kind = max(piece.kind, last.kind, key=KINDS.index)
            merged[-1] = Found(kind, last.start, max(piece.end, last.end))
        else:
            merged.append(piece)
    return merged


def _parts(record: Record) -> dict[str, Any]:
    return {
        "text": record.text,
        "prompt": record.prompt,
        "completion": record.completion,
        "system": record.system,
        "messages": record.messages,
        "tools": record.tools,
    }


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _OWN_KEYS:
                yield key
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return _masked_text(value)
    if isinstance(value, Mapping):
        return dict(zip(_masked_keys(list(value)), map(_masked, value.values()), strict=True))
    if isinstance(value, list):
        return [_masked(inner) for inner in value]
    if isinstance(value, tuple):
        return tuple(_masked(inner) for inner in value)
    return value


def _masked_keys(keys_given: list[str]) -> list[str]:
    """Keys of one object, each still another than the rest."""
    masked = [key if key in _OWN_KEYS else _masked_text(key) for key in keys_given]
    taken = {key for key, new in zip(keys_given, masked, strict=True) if key == new}
    for place, (key, new) in enumerate(zip(keys_given, masked, strict=True)):
        if key != new:
            named = chain((new,), (f"{new} {number}" for number in count(2)))
            masked[place] = next(name for name in named if name not in taken)
            taken.add(masked[place])
    return masked


def _masked_text(text: str) -> str:
    # What stood beside a piece may be one of its own once that is gone; each round takes away what isn't placeholder.
    while found := spans(text):
        pieces, behind = [], 0
        for kind, start, end in found:
            pieces += [text[behind:start], f"[{kind.upper()}]"]
            behind = end
        text = "".join([*pieces, text[behind:]])
    return text
