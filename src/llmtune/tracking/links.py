"""Links into MLflow's pages."""

import json
from collections.abc import Sequence
from urllib.parse import quote

from llmtune.runs.status import without_credentials


def ui_base(tracking_uri: str, port: int) -> str:
    """Where MLflow's pages are: the tracking server itself, else `llmtune ui` on this machine.

    Args:
        tracking_uri: the store.
        port: port of `llmtune ui`.
    """
    if tracking_uri.startswith(("http://", "https://")):
        return without_credentials(tracking_uri).rstrip("/")
    return f"http://127.0.0.1:{port}"


def experiment_link(base: str, experiment_id: str) -> str:
    """The page with the runs of an MLflow experiment."""
    return f"{base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def run_link(base: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}"


def compare_link(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that shows params and metrics of some runs side by side."""
    return f"{base}/#/compare-runs?runs={_encoded(list(run_ids))}&experiments={_encoded([experiment_id])}"


def children_link(base: str, experiment_id: str, parent_run_id: str, metric: str = "evaluate/loss") -> str:
    """The page with the curves of a sweep's runs.

    Args:
        base: start of the link, from `ui_base`.
        experiment_id: MLflow experiment of the runs.
        parent_run_id: the sweep's MLflow run.
        metric: the runs are sorted by it, lowest first (without one MLflow folds them away under their parent).
    """
    search = quote(f"tags.mlflow.parentRunId = '{parent_run_id}'", safe="")
    order = quote(f"metrics.`{metric}`", safe="")
    return (
        f"{base}/#/experiments/{experiment_id}/runs?searchFilter={search}&orderByKey={order}&orderByAsc=true"
        "&compareRunsMode=CHART&workflowType=machine_learning"
    )


def _encoded(values: list[str]) -> str:
    return quote(json.dumps(values, separators=(",", ":")), safe="")
