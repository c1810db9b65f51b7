"""What is recorded of a run, as plain entries that a file can hold until the store takes them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

EntryKind = Literal["params", "tags", "metrics", "artifact", "dataset", "end"]
BATCH_SIZE = 50
"""Entries of metrics in one request; MLflow takes at most 1000 metrics."""
KEPT_FILE = "unsent.jsonl"
"""Name of the file in a run folder that keeps what the store has not taken yet."""
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
    sweep: str | None = None
    """Name of the sweep that the run belongs to, which is also the name of the sweep's MLflow run."""
    parent_run_id: str | None = None
    """The sweep's MLflow run, where it is known; else it is looked for by name."""
    run_id: str | None = None
    """MLflow run to go on in; None makes a new one."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Searchable tags; `run_folder` is where the run is on disk, and where entries are kept that weren't sent."""

    @property
    def is_sweep(self) -> bool:
        """Whether it is the run of a sweep, which its jobs' runs belong to."""
        return self.tags.get("kind") == "sweep"

    @property
    def kept_file(self) -> Path | None:
        """The file that keeps what the store has not taken yet; None for a run without a folder."""
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


def first_batch(entries: Sequence[Entry]) -> list[Entry]:
    """What one request takes of the entries: the next ones of metrics, or one of another kind."""
    count = 0
    while count < min(BATCH_SIZE, len(entries)) and entries[count].kind == "metrics":
        count += 1
    return list(entries[: max(1, count)])
