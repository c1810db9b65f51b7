"""Which runs an MLflow store knows: a link to others leads nowhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.runs.status import without_credentials
from llmtune.tracking.store import open_existing_store, resolve_tracking_uri

if TYPE_CHECKING:
    from llmtune.tracking.client import MlflowClient


@dataclass(frozen=True)
class KnownRuns:
    """Runs that a store knows."""

    run_ids: tuple[str, ...] = ()
    """Their ids, in the order in which they were asked for."""
    experiment_id: str | None = None
    """The MLflow experiment of the first."""


def known_runs(uri: str, run_ids: Sequence[str]) -> KnownRuns:
    """Those of the runs that the store knows; none where it is away or can't be read.

    Args:
        uri: absolute tracking URI.
        run_ids: MLflow's ids.
    """
    if not run_ids:
        return KnownRuns()
    try:
        client = open_existing_store(uri)
        experiments = {run_id: _experiment_of(client, run_id) for run_id in run_ids} if client is not None else {}
    except Exception:  # whatever a damaged store raises: its library's errors come through mlflow as they are
        return KnownRuns()
    known = {run_id: experiment for run_id, experiment in experiments.items() if experiment is not None}
    return KnownRuns(tuple(known), next(iter(known.values()), None))


def store_of(run_ids: Sequence[str], typed: str | None, recorded: str | None) -> str:
    """Absolute tracking URI of the store where runs are to be found.

    That is the typed one; else the recorded one, or the one that this folder's runs use, where the recorded one knows
    none of them and that one does: the project was moved together with its store.

    Args:
        run_ids: MLflow's ids.
        typed: tracking URI; None is none.
        recorded: the store that the runs were recorded in.

    Raises:
        ConfigError: the typed one, or MLFLOW_TRACKING_URI, can never be a store.
    """
    if typed is not None:
        return resolve_tracking_uri(typed, Path.cwd())
    here = resolve_tracking_uri(None, Path.cwd())
    if recorded is None or without_credentials(here) == recorded:
        return here  # with the credentials, which no record has
    lies_here = not known_runs(recorded, run_ids).run_ids and bool(known_runs(here, run_ids).run_ids)
    return here if lies_here else recorded


def _experiment_of(client: "MlflowClient", run_id: str) -> str | None:
    """The run's MLflow experiment; None where the store doesn't know the run."""
    from llmtune.tracking.client import MlflowException

    try:
        return client.get_run(run_id).info.experiment_id
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
