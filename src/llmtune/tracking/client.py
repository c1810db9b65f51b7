"""The one door to the mlflow library: its settings are made here before it is imported.

Telemetry is off. A request to a tracking server that is away ends within seconds. Both are defaults that the
environment may set otherwise, as are the lines silenced by name below, none of which a user can act on.
"""

import logging
import os

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

_SILENCED = {
    "alembic": logging.WARNING,  # "Running upgrade …", a line a migration, when a store is made
    "mlflow.store.db.utils": logging.WARNING,  # "Creating initial MLflow database tables..."
    "mlflow.system_metrics.system_metrics_monitor": logging.ERROR,  # start, stop, and a store that is away
    "urllib3.connectionpool": logging.ERROR,  # "Retrying …" for a server that is away, which we say once
}
for _name, _level in _SILENCED.items():
    logging.getLogger(_name).setLevel(_level)
