"""What the stages ask of a tracker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Records a run's params, metrics and artifacts. No call raises because a store is away."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None where nothing is tracked."""
        ...

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record the flattened config (dotted key to value)."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set searchable tags."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics (`<stage>/<name>`) at `step`; returns without waiting for the store."""
        ...

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file, or a folder with all in it, below `folder` of the run's artifacts."""
        ...

    def log_dataset(self, name: str, digest: str, source: str, context: str, num_rows: int) -> None:
        """Record a data set as the run's input; `context` is train, validation or test."""
        ...

    def close(self, status: RunStatus) -> None:
        """Send what is left and end the run with `status`."""
        ...
