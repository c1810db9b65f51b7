"""What `run=` and `method.adapter=` name: a run, a checkpoint in one, or weights that were made elsewhere."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.config.resources import group_options
from llmtune.config.saved import load_plain
from llmtune.config.validate import nearest
from llmtune.errors import ModelError, RunError
from llmtune.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE, AdapterFiles, is_adapter, read_adapter
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import MLFLOW_RUN_ID, find_run, is_run_folder, places_of

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PLACEHOLDERS = ("folder", "hub")
"""Options of the group `model` that name no model by themselves."""


@dataclass(frozen=True)
class NamedRun:
    """A run, or one checkpoint of it."""

    folder: RunFolder
    config: Mapping[str, Any]
    """The run's saved config, plain."""
    checkpoint: Path | None = None
    """The checkpoint that was named; None where the run itself was."""


@dataclass(frozen=True)
class NamedModel:
    """A whole model."""

    model: str
    """As `model=` takes it: the name of a config, a folder or a Hub id."""


Named = NamedRun | AdapterFiles | NamedModel


@dataclass(frozen=True)
class Places:
    """Where references are looked up."""

    runs_dir: Path
    tracking_uri: str | None = None
    """As it was typed; None for the default store."""
    revision: str | None = None
    """Commit, branch or tag of what is on the Hub."""


def resolve(reference: str, places: Places, key: str = "run") -> Named:
    """What a reference names.

    Args:
        reference: `latest`, an MLflow run id, a run folder or its name, a checkpoint, the folder of a model or of an
            adapter, the name of a model's config, or a Hub id.
        places: where to look.
        key: the key that it was typed for, for messages.

    Raises:
        RunError: it leads nowhere, or to something that can't be used.
        ModelError: it is on the Hub and can't be had, or is no readable adapter.
    """
    if reference == "latest":
        return _run(find_run(reference, places.runs_dir))
    if MLFLOW_RUN_ID.fullmatch(reference):
        return _run(_run_of_mlflow(reference, places))
    for path in places_of(reference, places.runs_dir):
        found = _in_folder(path, f"{key}={reference}")
        if found is not None:
            return found
    if reference in group_options("model") and reference not in _PLACEHOLDERS:
        return NamedModel(reference)
    if _HUB_ID.fullmatch(reference) and not Path(reference).parent.is_dir():
        return _on_hub(reference, places.revision, f"{key}={reference}")
    try:
        return _run(find_run(reference, places.runs_dir))
    except RunError as error:
        hint = nearest(reference, group_options("model"))
        raise RunError(f"{error}{';' if hint else ''}{hint}".replace("run=", f"{key}=", 1)) from None


def _run(folder: RunFolder, checkpoint: Path | None = None) -> NamedRun:
    return NamedRun(folder, load_plain(folder.config_file), checkpoint)


def _in_folder(path: Path, asked: str) -> Named | None:
    """What stands at a path; None where nothing does."""
    run = RunFolder(path.parent.parent)
    if path.parent.name == "checkpoints" and is_run_folder(run.path):
        if not path.is_dir():
            raise RunError(f"{asked}: there is no such checkpoint; {run.path} has {_checkpoints(run)}")
        return _run(run, path.resolve())
    if path.is_file():
        raise RunError(f"{asked}: is a file; name its folder")
    if not path.is_dir():
        return None
    if is_run_folder(path):
        return _run(find_run(str(path), path.parent))
    if is_adapter(path):
        return read_adapter(path.resolve(), asked)
    if (path / "config.json").is_file():
        return NamedModel(str(path))
    raise RunError(
        f"{asked}: is a folder without config.yaml (a run), config.json (a model) or {CONFIG_FILE} (an adapter); "
        f"it holds {_content(path)}"
    )


def _checkpoints(run: RunFolder) -> str:
    found = sorted((path.name for path in run.checkpoints.glob("checkpoint-*")), key=lambda name: (len(name), name))
    return ", ".join(found) or "none"


def _content(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "nothing"


def _run_of_mlflow(run_id: str, places: Places) -> RunFolder:
    """The run folder of an MLflow run: among the run folders, else as the store recorded it."""
    try:
        return find_run(run_id, places.runs_dir)
    except RunError:
        from mlflow.exceptions import MlflowException

        from llmtune.tracking.store import open_existing_store, resolve_tracking_uri

        client = open_existing_store(resolve_tracking_uri(places.tracking_uri, Path.cwd()))
        try:
            recorded = client.get_run(run_id).data.tags.get("run_folder") if client else None
        except MlflowException:
            recorded = None
        if recorded is None:
            raise
        if not Path(recorded).is_dir():
            raise RunError(f"run={run_id}: the store says {recorded}, and no such folder is on this machine") from None
        return find_run(recorded, places.runs_dir)


def _on_hub(reference: str, revision: str | None, asked: str) -> Named:
    from llmtune.models.hub import snapshot

    try:
        folder = snapshot(reference, revision=revision, patterns=[CONFIG_FILE, WEIGHTS_FILE], asked=asked)
    except ModelError as error:
        raise ModelError(f"{error}. No folder of that name is here either") from error
    return read_adapter(folder, asked) if is_adapter(folder) else NamedModel(reference)
