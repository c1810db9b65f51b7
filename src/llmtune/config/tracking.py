"""`tracking`: where metrics and artifacts are recorded beside the run folder."""

from typing import Literal

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, PositiveInt, Text


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow's settings."""

    backend: Literal["mlflow", "none"] = "mlflow"
    """`mlflow`, or `none` for the run folder alone."""
    uri: Text | None = None
    """MLflow's tracking URI; null is MLFLOW_TRACKING_URI, else mlflow.db in the working folder."""
    experiment: Text = "llmtune"
    """MLflow experiment that the run belongs to."""
    log_model: Literal["auto", "none", "adapter", "merged"] = "auto"
    """Weights logged as artifacts: `auto` is the adapter, and none for full fine-tuning."""
    log_text: bool = True
    """Whether text of examples and answers may be written to run folder and store."""
    system_metrics: bool = True
    """Whether CPU, memory and GPU use are logged."""
    ui_port: PositiveInt = 5000
    """Port of `llmtune ui`; the links that are printed point to it."""
