"""One example as its source gives it, before it becomes tokens."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtune.errors import DataError

_MOST_LISTED = 20


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
    """A conversation: only the assistant's turns are supervised."""
    group: str | None = None
    """Examples of one group never straddle a split; None is a group of its own."""


@dataclass(frozen=True)
class RecordSet:
    """What a source holds."""

    records: list[Record]
    origin: dict[str, Any]
    """Path or id, revision, licence, rows and sha256, as far as the source has them."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows that hold no example, by reason. They are part of `origin["rows"]`."""


class Problems:
    """Collects what is wrong with a source, so that one pass names all of it."""

    def __init__(self) -> None:
        self._listed: list[str] = []
        self._count = 0

    def add(self, path: str, line: int, reason: str) -> None:
        """Note a problem. `reason` must not quote the example."""
        self._count += 1
        if len(self._listed) < _MOST_LISTED:
            self._listed.append(f"{path}:{line}: {reason}")

    def raise_if_any(self) -> None:
        """End with every problem that was noted.

        Raises:
            DataError: there was one; the first 20 are listed and the others counted.
        """
        if self._count > len(self._listed):
            raise DataError([*self._listed, f"... and {self._count - len(self._listed)} more problems like these"])
        if self._listed:
            raise DataError(self._listed)


def content_hash(record: Record) -> str:
    """Hex sha256 of what an example says, wherever it stands.

    Line endings, Unicode composition and white space at both ends of the example don't count.
    """
    if record.messages is not None:
        turns = [{key: _normalised(value) for key, value in turn.items()} for turn in record.messages]
        content = json.dumps(["messages", turns], sort_keys=True, ensure_ascii=False, default=str)
    elif record.text is not None:
        content = json.dumps(["text", _normalised(record.text).strip()], ensure_ascii=False)
    else:
        pair = [_normalised(record.prompt).lstrip(), _normalised(record.completion).rstrip()]
        content = json.dumps(["completion", *pair], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def records_digest(records: Iterable[Record]) -> str:
    """Hex sha256 over the content of examples in their order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(content_hash(record).encode())
    return digest.hexdigest()


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value.replace("\r\n", "\n"))
    return value
