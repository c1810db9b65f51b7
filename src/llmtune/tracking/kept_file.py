"""The file in a run folder that holds what the store has not taken yet."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmtune.tracking.entry import Entry


class KeptFile:
    """Entries on disk until they are sent. Lines are only added, so that a kill at any moment costs none of them.

    A line is the run, an entry with its number, or the number up to which all was sent. That one bears the token of the
    file's first line, so that a sender whose file was written anew meanwhile takes nothing out of the new one.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_whole = False
        """Whether every entry that waits stands in the file; false where the disk refused one."""
        self._token = ""
        self._num_added = 0
        self._num_sent = 0

    def begin(self, run: Mapping[str, Any], entries: Sequence[Entry] = ()) -> None:
        """Write the file anew; a reader finds the old content or the new one.

        Args:
            run: which run the entries belong to.
            entries: what waits.
        """
        self._token = secrets.token_hex(4)
        self._num_added, self._num_sent = len(entries), 0
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            first = json.dumps({"run": dict(run), "token": self._token}, default=str) + "\n"
            lines = [first, *(_entry_line(number, entry) for number, entry in enumerate(entries, 1))]
            temporary.write_text("".join(lines), encoding="utf-8")
            temporary.replace(self.path)
        except OSError:
            self.is_whole = False
        else:
            self.is_whole = True

    def add(self, entry: Entry) -> None:
        """Add an entry."""
        self._num_added += 1
        self._append(_entry_line(self._num_added, entry))

    def count_sent(self, num_entries: int) -> None:
        """Record that so many more entries, the oldest, were sent."""
        self._num_sent += num_entries
        self._append(json.dumps({"sent": self._num_sent, "token": self._token}) + "\n")

    def remove(self) -> None:
        """Remove the file: the run has ended, and nothing waits."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _append(self, line: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError:
            self.is_whole = False


def read_kept(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    """The run and the entries that wait; a line that a kill cut short is left out, and no file is no entry."""
    run: dict[str, Any] = {}
    token, sent = None, 0
    waiting: dict[int, Entry] = {}
    for content in _contents(path):
        if "run" in content:
            run, token = content["run"], content.get("token")
        elif "sent" in content:
            sent = content["sent"] if content.get("token") == token else sent
        elif content.keys() >= {"number", "kind", "content"}:
            waiting[content["number"]] = Entry(content["kind"], content["content"])
    return run, [entry for number, entry in waiting.items() if number > sent]


def _entry_line(number: int, entry: Entry) -> str:
    return json.dumps({"number": number, "kind": entry.kind, "content": dict(entry.content)}, default=str) + "\n"


def _contents(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.split("\n")[:-1]:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content
