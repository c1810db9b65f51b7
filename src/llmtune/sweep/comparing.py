"""The comparison of a sweep's runs: made, kept, put into the sweep's MLflow run, and said."""

from collections.abc import Callable, Sequence

from llmtune.comparison.files import ComparisonFiles, write_files
from llmtune.comparison.gathering import Candidate, compare_candidates
from llmtune.comparison.markdown import description
from llmtune.comparison.outcome import Comparison
from llmtune.config.tracking import TrackingConfig
from llmtune.errors import ConfigError, explained
from llmtune.logs import say, warn
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunStatusFile, without_credentials
from llmtune.sweep.job import JobOutcome, SweepSettings
from llmtune.sweep.known_runs import known_runs, store_of
from llmtune.tracking.links import compare_link, ui_base
from llmtune.tracking.mlflow import DESCRIPTION_TAG
from llmtune.tracking.store import open_existing_store


def compare_jobs(
    outcomes: Sequence[JobOutcome], settings: SweepSettings
) -> tuple[Comparison, ComparisonFiles | None] | None:
    """Compare a sweep's runs and write what was found into the sweep's folder.

    Args:
        outcomes: what became of the jobs.
        settings: the sweep's.

    Returns:
        The comparison and its files, None for those where they can't be written; None where no run has measured its
        weights.
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
    return comparison, keep(comparison, lambda: settings.folder)


def keep(comparison: Comparison, folder: Callable[[], RunFolder]) -> ComparisonFiles | None:
    """Write the comparison's files and return them; None where that can't be done, which is said: the answer stands.

    Args:
        comparison: what was found.
        folder: gives where to write; may make it.
    """
    try:
        return write_files(comparison, folder().path)
    except (OSError, ConfigError) as error:
        reason = (explained(error) if isinstance(error, OSError) else None) or error
        warn(f"the comparison isn't kept in files: {reason}")
        return None


def log_comparison(
    sweep: RunFolder, comparison: Comparison, files: ComparisonFiles | None, typed_uri: str | None = None
) -> None:
    """Bring the sweep's MLflow run up to date: table and verdict as its description, the files as artifacts.

    A store that is away or damaged, or has lost the run, is said; the files stay where they are.

    Args:
        sweep: the sweep's folder.
        comparison: what was found.
        files: where it was written; None where it could not be.
        typed_uri: tracking URI of the store; None is the one that the sweep was recorded in, or this folder's where the
            sweep was moved together with it.

    Raises:
        ConfigError: the typed one can never be a store.
    """
    record = RunStatusFile(sweep.status_file).read()
    if record is None or record.mlflow_run_id is None or not (typed_uri or record.tracking_uri):
        return
    uri = store_of([record.mlflow_run_id], typed_uri, record.tracking_uri)
    store = without_credentials(uri)
    try:
        client = open_existing_store(uri)
        if client is None:
            warn(f"the MLflow store {store} is away; its page of the sweep stays as it was")
            return
        client.set_tag(record.mlflow_run_id, DESCRIPTION_TAG, description(comparison))
        for file in files.all if files is not None else ():
            client.log_artifact(record.mlflow_run_id, str(file))
    except Exception as error:  # whatever a damaged store raises: its library's errors come through mlflow as they are
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warn(f"the sweep's page in the MLflow store {store} could not be brought up to date: {reason}")


def say_side_by_side(comparison: Comparison, tracking: TrackingConfig, typed_uri: str | None = None) -> None:
    """Say which page of MLflow shows the comparison's runs, where a store knows them.

    Args:
        comparison: what was found.
        tracking: how the runs are recorded.
        typed_uri: tracking URI of the store; None is that of the runs' config, or this folder's.
    """
    ids = [run.mlflow_run_id for row in comparison.rows if not row.is_base for run in row.runs]
    run_ids = [run_id for run_id in ids if run_id is not None]
    if not run_ids or tracking.backend != "mlflow":
        return
    uri = store_of(run_ids, typed_uri, tracking.uri)
    known = known_runs(uri, run_ids)
    if known.experiment_id is not None:
        link = compare_link(ui_base(uri, tracking.ui_port), known.experiment_id, known.run_ids)
        say(f"side by side: {link} (after: python -m llmtune ui)")
