"""What is recorded of a run, as plain entries that a file can hold until the store takes them."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

EntryKind = Literal["params", "tags", "metrics", "artifact", "dataset", "end"]
KEPT_FILE = "unsent.jsonl"
"""Name of the file in a run folder that keeps what the store did not take."""
TRAINING_METRICS = ("train/", "evaluate/validation_")
"""Starts of the metrics that a run which goes on makes again for steps that it has."""


@dataclass(frozen=True)
class Entry:
    """One thing to record."""

    kind: EntryKind
    content: Mapping[str, Any]
    """Params and tags by name; for metrics `values`, `step` and `timestamp` (milliseconds)."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """Which MLflow run a tracker records in."""

    experiment: str
    """MLflow experiment's name."""
    name: str
    """Run's name; no other run of the experiment has it."""
    parent_run_id: str | None = None
    """MLflow run of the sweep that the run belongs to."""
    run_id: str | None = None
    """MLflow run to go on in; None makes a new one."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Searchable tags; `run_folder` is where the run is on disk, and where entries are kept that weren't sent."""

    @property
    def kept_file(self) -> Path | None:
        """The file that keeps what the store did not take; None for a run without a folder."""
        folder = self.tags.get("run_folder")
        return Path(folder) / KEPT_FILE if folder else None


def metrics_entry(values: Mapping[str, float], step: int) -> Entry:
    """Metrics with the time of now, which makes a second sending of the same entry harmless.

    Args:
        values: metric's key to value.
        step: weight updates done.
    """
    numbers = {key: float(value) for key, value in values.items()}
    return Entry("metrics", {"values": numbers, "step": step, "timestamp": int(time.time() * 1000)})


def training_steps(entries: Sequence[Entry]) -> dict[str, int]:
    """The last step of each of training's metrics among the entries."""
    last: dict[str, int] = {}
    for entry in entries:
        names = entry.content["values"] if entry.kind == "metrics" else ()
        last |= {name: entry.content["step"] for name in names if name.startswith(TRAINING_METRICS)}
    return last


def keep(file: Path, run: Mapping[str, Any], entries: Sequence[Entry]) -> None:
    """Write what waits to the file, its run first; a reader finds the old content or the new one. Nothing: no file."""
    if not entries:
        file.unlink(missing_ok=True)
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text("".join([json.dumps(run) + "\n", *map(_line, entries)]), encoding="utf-8")
    temporary.replace(file)


def keep_one_more(file: Path, entry: Entry) -> None:
    """Add an entry to the file."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(_line(entry))


def read_kept(file: Path) -> tuple[dict[str, Any], list[Entry]]:
    """The run and the entries that a file keeps; a line that a kill cut short is left out, and no file is no entry."""
    contents = list(_contents(file))
    run = contents[0] if contents else {}
    entries = [Entry(content["kind"], content["content"]) for content in contents[1:] if "kind" in content]
    return run, entries


def _line(entry: Entry) -> str:
    return json.dumps({"kind": entry.kind, "content": dict(entry.content)}, default=str) + "\n"


def _contents(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content
