"""The comparison of a sweep's runs: made, put into the sweep's MLflow run, and said."""

from collections.abc import Sequence
from pathlib import Path

from llmtune.comparison.files import ComparisonFiles, write_files
from llmtune.comparison.gathering import Candidate, compare_candidates
from llmtune.comparison.markdown import description
from llmtune.comparison.outcome import Comparison
from llmtune.config.tracking import TrackingConfig
from llmtune.logs import say, warn
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile, without_credentials
from llmtune.sweep.job import JobOutcome, SweepSettings
from llmtune.tracking.links import compare_link, ui_base
from llmtune.tracking.mlflow import DESCRIPTION_TAG
from llmtune.tracking.store import open_existing_store, resolve_tracking_uri


def compare_jobs(outcomes: Sequence[JobOutcome], settings: SweepSettings) -> tuple[Comparison, ComparisonFiles] | None:
    """Compare a sweep's runs and write what was found into the sweep's folder.

    Args:
        outcomes: what became of the jobs.
        settings: the sweep's.

    Returns:
        The comparison and its files; None where no run has measured its weights.
    """
    candidates = [
        Candidate(
            name=outcome.job.name,
            folder=outcome.job.folder,
            status=outcome.status or "NOT STARTED",
            error=outcome.error,
        )
        for outcome in outcomes
    ]
    comparison = compare_candidates(candidates, settings.compare, settings.folder.path.name)
    if not comparison.rows:
        return None
    return comparison, write_files(comparison, settings.folder.path)


def log_comparison(sweep: RunFolder, comparison: Comparison, files: ComparisonFiles) -> None:
    """Bring the sweep's MLflow run up to date: table and verdict as its description, the files as artifacts.

    A store that is away, or has lost the run, is said; the files stay where they are.

    Args:
        sweep: the sweep's folder.
        comparison: what was found.
        files: where it was written.
    """
    record = RunStatusFile(sweep.status_file).read()
    if record is None or record.mlflow_run_id is None or record.tracking_uri is None:
        return
    from llmtune.tracking.client import MlflowException

    store = without_credentials(record.tracking_uri)
    try:
        client = open_existing_store(record.tracking_uri)
        if client is None:
            warn(f"the MLflow store {store} is away; its page of the sweep stays as it was")
            return
        client.set_tag(record.mlflow_run_id, DESCRIPTION_TAG, description(comparison))
        for file in files.all:
            client.log_artifact(record.mlflow_run_id, str(file))
    except (MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        warn(f"the sweep's page in the MLflow store {store} could not be brought up to date: {reason}")


def say_compared(comparison: Comparison, files: ComparisonFiles, tracking: TrackingConfig) -> None:
    """Say where the comparison is, and which page of MLflow shows its runs side by side."""
    say(f"the comparison: {files.page}")
    ids = [run.mlflow_run_id for row in comparison.rows if not row.is_base for run in row.runs]
    link = _side_by_side([run_id for run_id in ids if run_id is not None], tracking)
    if link is not None:
        say(f"side by side: {link} (after: python -m llmtune ui)")


def _side_by_side(run_ids: Sequence[str], tracking: TrackingConfig) -> str | None:
    """The link to MLflow's page on the runs; None where the store isn't there or doesn't know them."""
    if not run_ids or tracking.backend != "mlflow":
        return None
    from llmtune.tracking.client import MlflowException

    try:
        uri = resolve_tracking_uri(tracking.uri, Path.cwd())
        client = open_existing_store(uri)
        experiment = client.get_run(run_ids[0]).info.experiment_id if client else None
    except (MlflowException, OSError):
        return None
    return compare_link(ui_base(uri, tracking.ui_port), experiment, run_ids) if experiment else None
