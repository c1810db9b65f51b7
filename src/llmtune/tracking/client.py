"""The one door to the mlflow library: its settings are made here before it is imported.

Telemetry is off. A request to a tracking server that is away ends within seconds. Both are defaults that the
environment may set otherwise. Lines that no user can act on are silenced.
"""

import os

from llmtune.logs import silence_libraries

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

__all__ = [
    "Dataset",
    "DatasetInput",
    "InputTag",
    "Metric",
    "MlflowClient",
    "MlflowException",
    "Param",
    "RunTag",
]

silence_libraries()
