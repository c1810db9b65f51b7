"""The sweep's own record: its status file and the MLflow run that its jobs' runs belong to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.logs import say
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import write_json
from llmtune.runs.status import RunStatusFile
from llmtune.sweep.job import SweepJob, SweepSettings
from llmtune.sweep.known_runs import known_runs
from llmtune.sweep.summary import markdown
from llmtune.tracking.links import children_link, compare_link, ui_base
from llmtune.tracking.mlflow import DESCRIPTION_TAG, MlflowTracker, TrackedRun
from llmtune.tracking.tracker import RunStatus


class SweepRecord:
    """Records a sweep from its start to its end; one that is gone on with stays the same MLflow run.

    Args:
        settings: where it is recorded.
        jobs: the sweep's jobs.
    """

    def __init__(self, settings: SweepSettings, jobs: Sequence[SweepJob]) -> None:
        self._settings = settings
        self._status = RunStatusFile(settings.folder.status_file)
        self._tracker: MlflowTracker | None = None
        before = self._status.read()
        known_id = before.mlflow_run_id if before is not None else None
        self._status.start(known_id, settings.tracking_uri)
        if settings.tracking_uri is not None:
            folder = settings.folder.path
            tags = {"kind": "sweep", "run_folder": str(folder)}
            run = TrackedRun(experiment=settings.experiment, name=folder.name, tags=tags, run_id=known_id)
            self._tracker = MlflowTracker(settings.tracking_uri, run, Path.cwd())
            keys = sorted({key for job in jobs for key in job.differences})
            self._tracker.log_params({"sweep.num_jobs": len(jobs), "sweep.keys": ", ".join(keys)})
            self._status.start(self.run_id or known_id, settings.tracking_uri)

    @property
    def run_id(self) -> str | None:
        """The sweep's MLflow run; None where nothing is tracked, and while the store is away."""
        return self._tracker.run_id if self._tracker is not None else None

    @property
    def folder(self) -> RunFolder:
        """The sweep's folder."""
        return self._settings.folder

    @property
    def summary_file(self) -> Path:
        """The summary, JSON."""
        return self._settings.folder.summary_file

    def write_summary(self, entries: Sequence[dict[str, Any]]) -> None:
        """Keep the summary in the sweep's folder and as the MLflow run's description."""
        write_json(self.summary_file, list(entries))
        self.set_description(markdown(entries))
        self.log_artifact(self.summary_file)

    def set_description(self, text: str) -> None:
        """Set what the MLflow run's page shows as its description, in Markdown."""
        if self._tracker is not None:
            self._tracker.set_tags({DESCRIPTION_TAG: text})

    def log_artifact(self, path: Path) -> None:
        """Upload a file to the MLflow run's artifacts."""
        if self._tracker is not None:
            self._tracker.log_artifact(path)

    def close(self, status: RunStatus, error: str | None = None) -> None:
        """Record how the sweep ended."""
        self._status.end(status, error)
        if self._tracker is not None:
            self._tracker.close(status)

    def say_links(self, run_ids: Sequence[str]) -> None:
        """Print the links to the pages that show the runs side by side, as far as the store knows them."""
        if self._tracker is None or self._tracker.experiment_id is None or self.run_id is None or not run_ids:
            return
        uri = self._settings.tracking_uri or ""
        base, known = ui_base(uri, self._settings.ui_port), known_runs(uri, run_ids).run_ids
        if known:
            say(f"side by side: {compare_link(base, self._tracker.experiment_id, known)}")
        say(f"bars and curves: {children_link(base, self._tracker.experiment_id, self.run_id)}")
        if not uri.startswith(("http://", "https://")):
            say("(both need MLflow's pages: python -m llmtune ui)")
