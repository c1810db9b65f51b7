"""A run's `metrics.jsonl`: one JSON object a line, `step` and metrics by name."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LossPoints = list[tuple[int, float]]
"""Steps done and nats per supervised token."""


class MetricsLog:
    """Appends metrics to a file and reads them back.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one line: `metrics` after `step` weight updates."""
        line = (json.dumps({"step": step, **metrics}) + "\n").encode()
        try:
            self._add(line)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._add(line)

    def _add(self, line: bytes) -> None:
        with self._path.open("ab") as file:  # as text it would take twice as long, in each step
            file.write(line)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one that a kill cut short is left out."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def cut_after(self, step: int) -> None:
        """Drop the lines of steps after `step`: a run that goes on from there writes them again."""
        if not self._path.exists():
            return
        kept = [json.dumps(entry) + "\n" for entry in self.read() if entry["step"] <= step]
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self._path)

    def losses(self, name: str) -> LossPoints:
        """The values of the metric `name` (such as `train/loss`) by step."""
        return [(entry["step"], entry[name]) for entry in self.read() if name in entry]
