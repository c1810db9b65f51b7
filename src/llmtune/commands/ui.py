"""`ui`: MLflow's pages on the recorded runs."""

import json
from pathlib import Path

from llmtune.config.run import RunConfig


def run(config: RunConfig) -> int:
    """Serve the pages until they are stopped, and return the exit status."""
    from llmtune.tracking.dead_runs import mark_dead_runs
    from llmtune.tracking.store import resolve_tracking_uri
    from llmtune.tracking.ui import serve_ui

    uri = resolve_tracking_uri(config.tracking.uri, Path.cwd())
    mark_dead_runs(Path(config.runs_dir), uri)
    return serve_ui(uri, config.tracking.ui_port, _links(config, uri))


def _links(config: RunConfig, uri: str) -> list[tuple[str, str]]:
    """The experiment's page, and where there is a sweep the one that shows the newest's runs side by side."""
    from llmtune.tracking.links import compare_link, experiment_link, ui_base
    from llmtune.tracking.store import open_existing_store

    client, base = open_existing_store(uri), ui_base(uri, config.tracking.ui_port)
    experiment = client.get_experiment_by_name(config.tracking.experiment) if client else None
    if experiment is None:
        return [("MLflow (nothing recorded yet)", base)]
    links = [("runs", experiment_link(base, experiment.experiment_id))]
    sweeps = sorted(Path(config.runs_dir).glob("*-sweep-*/summary.json"))
    if sweeps:
        entries = json.loads(sweeps[-1].read_text(encoding="utf-8"))
        ids = [entry["mlflow_run_id"] for entry in entries if entry["mlflow_run_id"]]
        links.append((f"side by side: {sweeps[-1].parent.name}", compare_link(base, experiment.experiment_id, ids)))
    return links
