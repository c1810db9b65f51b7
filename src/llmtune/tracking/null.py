"""A tracker that records nothing."""

from collections.abc import Mapping
from pathlib import Path

from llmtune.tracking.tracker import RunStatus


class NullTracker:
    """Stands in where `tracking.backend` is `none`, and in every process but the first."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def log_dataset(self, name: str, digest: str, source: str, context: str, num_rows: int) -> None:
        """Do nothing."""

    def close(self, status: RunStatus) -> None:
        """Do nothing."""
