"""The one door to the mlflow library: its settings are made here before it is imported.

Telemetry and the loading of pickles are off. A request to a tracking server that is away ends within seconds, and isn't
tried again there: what wasn't sent is kept. These are defaults that the environment may set otherwise. Lines that no
user can act on are silenced.
"""

import os

from llmtune.logs import silence_libraries

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
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
