"""Runs as their folders describe them; a damaged or half-written file spoils its own values and nothing else."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeGuard

import yaml

from llmtune.config.saved import load_plain
from llmtune.config.validate import flatten
from llmtune.errors import RunError
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import is_sweep_folder, runs_of_sweep
from llmtune.runs.status import PROCESS_GONE, RunRecord, RunStatusFile, last_sign_of_life

LossKind = Literal["test", "validation", "train"]
UNKNOWN = "?"
NOT_STARTED = "NOT STARTED"
STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED", NOT_STARTED)
FRESH_SECONDS = 60.0


@dataclass(frozen=True)
class Loss:
    """A loss in nats per supervised token, and of what."""

    kind: LossKind
    value: float


@dataclass(frozen=True)
class RunEntry:
    """A run folder; each file is read when it is first asked for.

    Attributes:
        folder: the run's folder.
        sweep: name of the sweep that it belongs to; None for a run by itself.
        problems: a sentence for each file that could not be read so far.
    """

    folder: RunFolder
    sweep: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.path.name

    @cached_property
    def record(self) -> RunRecord | None:
        """What its status file says; None where there is none that can be read."""
        record = RunStatusFile(self.folder.status_file).read()
        if record is None and self.folder.status_file.exists():
            self.problems.append("status.json is damaged")
        return record

    @cached_property
    def status(self) -> str:
        """How the run stands; KILLED where it is recorded as running by a process that is gone."""
        if self.record is None:
            return UNKNOWN if self.folder.status_file.exists() else NOT_STARTED
        return "KILLED" if self._is_dead else self.record.status

    @cached_property
    def error(self) -> str | None:
        """Why it isn't finished, in one line."""
        if self.record is None or self.status == "FINISHED":
            return None
        return PROCESS_GONE if self._is_dead else self.record.error

    @cached_property
    def config(self) -> dict[str, Any]:
        """The saved config, dotted key to value; empty where it can't be read."""
        try:
            return flatten(load_plain(self.folder.config_file))
        except (RunError, OSError, ValueError, yaml.YAMLError):
            found = "is damaged" if self.folder.config_file.exists() else "is missing"
            self.problems.append(f"config.yaml {found}")
            return {}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest's content; empty where there is none that can be read."""
        try:
            content = json.loads(self.folder.manifest_file.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) and isinstance(content["stages"], dict) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError):
            self.problems.append("manifest.json is damaged")
            return {}

    @cached_property
    def losses(self) -> dict[str, float]:
        """The losses that are known, by kind: on the test set, the best in validation, the last in training."""
        trained, last = self.stage("train"), {}
        if "best_validation_loss" not in trained or "final_loss" not in trained:
            last = _last_losses(self.folder.metrics_file)
        found = {
            "test": self.stage("evaluate").get("loss"),
            "validation": trained.get("best_validation_loss", last.get("validation")),
            "train": trained.get("final_loss", last.get("train")),
        }
        return {kind: float(loss) for kind, loss in found.items() if is_number(loss)}

    @property
    def loss(self) -> Loss | None:
        """The loss that says most: on the test set, else the best in validation, else the last in training."""
        return next(
            (Loss(kind, self.losses[kind]) for kind in ("test", "validation", "train") if kind in self.losses), None
        )

    @cached_property
    def started(self) -> datetime | None:
        """Its start: as recorded, else the time in its folder's name."""
        recorded = _time(self.record.started_at) if self.record is not None else None
        return recorded or _time_in_name(self.name)

    @cached_property
    def seconds(self) -> float | None:
        """Wall time from start to end; to now for one that runs, to the last sign of life for one that is gone."""
        if self.started is None or self.record is None:
            return None
        end = _time(self.record.ended_at) or (last_sign_of_life(self.folder) if self._is_dead else datetime.now(UTC))
        return max(0.0, (end - self.started).total_seconds())

    @property
    def is_fresh(self) -> bool:
        """Whether it was made within the last minute, so that its process may still be starting."""
        return self.started is not None and (datetime.now(UTC) - self.started).total_seconds() < FRESH_SECONDS

    def stage(self, name: str) -> dict[str, Any]:
        """A stage's results; empty unless it finished."""
        results = self.manifest.get("stages", {}).get(name)
        return results if isinstance(results, dict) else {}

    @cached_property
    def _is_dead(self) -> bool:
        return self.record is not None and self.record.status == "RUNNING" and self.record.process_is_gone()


def run_entries(runs_dir: Path) -> list[RunEntry]:
    """Every run in `runs_dir` and in the sweeps' folders there, newest first.

    Args:
        runs_dir: folder of the runs.
    """
    sweeps = _sweep_by_folder(runs_dir)
    entries = [
        RunEntry(RunFolder(path), sweeps.get(path.name) or _sweep_above(path))
        for path in sorted(_run_folders(runs_dir))
    ]
    oldest = datetime.fromtimestamp(0, UTC)
    return sorted(entries, key=lambda entry: (entry.started or oldest, entry.name), reverse=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file that are whole; what a kill or a write under way cut short is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError:
        return []
    return [entry for entry in map(metrics_entry, lines) if entry]


def metrics_entry(line: str) -> dict[str, Any]:
    """A line of a metrics file; empty where it is damaged."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else {}


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _run_folders(runs_dir: Path) -> set[Path]:
    files = (file for name in ("config.yaml", "status.json") for file in _one_or_two_down(runs_dir, name))
    return {file.parent for file in files if not is_sweep_folder(file.parent)}


def _one_or_two_down(runs_dir: Path, name: str) -> Iterator[Path]:
    yield from runs_dir.glob(f"*/{name}")
    yield from (file for file in runs_dir.glob(f"*/*/{name}") if is_sweep_folder(file.parent.parent))


def _sweep_above(path: Path) -> str | None:
    return path.parent.name if is_sweep_folder(path.parent) else None


def _sweep_by_folder(runs_dir: Path) -> dict[str, str]:
    """Run folder's name to sweep's name, from the sweeps' files; what can't be read is left out."""
    sweeps = [path for path in runs_dir.glob("*-sweep-*") if is_sweep_folder(path)]
    return {run.name: sweep.name for sweep in sweeps for run in runs_of_sweep(sweep)}


def _last_losses(path: Path) -> Mapping[str, float]:
    """The lowest validation loss and the last training loss of a metrics file."""
    entries = read_metrics(path)
    validation = [
        entry["evaluate/validation_loss"] for entry in entries if is_number(entry.get("evaluate/validation_loss"))
    ]
    train = [entry["train/loss"] for entry in entries if is_number(entry.get("train/loss"))]
    return {**({"validation": min(validation)} if validation else {}), **({"train": train[-1]} if train else {})}


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC) if text else None
    except (ValueError, TypeError):
        return None


def _time_in_name(name: str) -> datetime | None:
    try:
        return datetime.strptime(name[:15], "%Y%m%d-%H%M%S").astimezone(UTC)
    except ValueError:
        return None
