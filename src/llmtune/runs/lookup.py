"""Run folders: making new ones, and finding one by what a person types."""

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from llmtune.config.paths import with_absolute_paths
from llmtune.config.run import RunConfig
from llmtune.config.saved import save_config
from llmtune.errors import ConfigError, RunError, explained
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunRecord, RunStatusFile, status_files

MLFLOW_RUN_ID = re.compile(r"[0-9a-f]{32}")
_SWEEP_NAME = re.compile(r"\d{8}-\d{6}-sweep-[0-9a-f]{4}")
_RUNS_LISTED = 5


@dataclass(frozen=True)
class ListedRun:
    """A run folder and what its status file says."""

    folder: RunFolder
    record: RunRecord


def new_run_folder(runs_dir: Path, method: str, model: str, now: datetime) -> RunFolder:
    """Make the folder of a new run, `<YYYYmmdd-HHMMSS>-<method>-<model>-<4 hex>`.

    Args:
        runs_dir: folder that gets it; made where missing.
        method: the method's name.
        model: the model's name; of a Hub id the part after the last `/`.
        now: start of the run.
    """
    return RunFolder(_make_folder(runs_dir, f"{_plain(method)}-{_plain(model.rstrip('/').rsplit('/', 1)[-1])}", now))


def start_run_folder(config: RunConfig) -> RunFolder:
    """Make the folder of a run that begins now, with its config in it, every path absolute."""
    folder = new_run_folder(Path(config.runs_dir), config.method.name, config.model.name, datetime.now())
    save_config(with_absolute_paths(config), folder.config_file)
    return folder


def new_sweep_folder(runs_dir: Path, now: datetime) -> RunFolder:
    """Make the folder of a new sweep, `<YYYYmmdd-HHMMSS>-sweep-<4 hex>`."""
    return RunFolder(_make_folder(runs_dir, "sweep", now))


def new_comparison_folder(runs_dir: Path, now: datetime) -> RunFolder:
    """Make the folder of a comparison of runs that no one sweep made, `<YYYYmmdd-HHMMSS>-comparison-<4 hex>`."""
    return RunFolder(_make_folder(runs_dir, "comparison", now))


def is_sweep_folder(path: Path) -> bool:
    """Whether the folder's name is that of a sweep."""
    return _SWEEP_NAME.fullmatch(path.name) is not None


def runs_of_sweep(folder: Path) -> list[Path]:
    """The run folders of a sweep's jobs, in order, as its files name them; empty where none can be read.

    Runs that were moved or copied together with the sweep are those beside it, or in it.
    """
    sweep = RunFolder(folder)
    for file, at in ((sweep.sweep_file, "jobs"), (sweep.summary_file, None)):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            named = [Path(job["folder"]) for job in (content[at] if at else content)]
            return [_where_it_is(path, folder) for path in named]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []


def _where_it_is(recorded: Path, sweep: Path) -> Path:
    """A run's folder beside its sweep or in it, where it lies there; else as it was recorded."""
    near = (sweep.parent / recorded.name, sweep / recorded.name)
    return next((path for path in near if path.is_dir()), recorded)


def find_sweep(reference: str, runs_dir: Path) -> RunFolder:
    """The sweep that a reference means.

    Args:
        reference: a sweep's folder, its name in `runs_dir`, its MLflow run id, or `latest`.
        runs_dir: folder of the runs and sweeps.

    Raises:
        RunError: nothing of that kind is there, or it is a run.
    """
    sweeps = _list_sweeps(runs_dir)
    if reference == "latest" and sweeps:
        return sweeps[0]
    if MLFLOW_RUN_ID.fullmatch(reference):
        for sweep in sweeps:
            record = RunStatusFile(sweep.status_file).read()
            if record is not None and record.mlflow_run_id == reference:
                return sweep
    for path in places_of(reference, runs_dir):
        if is_sweep_folder(path) and path.is_dir():
            return RunFolder(path)
        if is_run_folder(path):
            raise RunError(
                f"run={reference} is a run, not a sweep; to go on with it, leave out -m: train run={reference}"
            )
    newest = ", ".join(str(sweep.path) for sweep in sweeps[:_RUNS_LISTED])
    raise RunError(
        f"run={reference}: no sweep is there; "
        + (
            f"the newest sweeps: {newest}"
            if newest
            else f"there is no sweep in {runs_dir}; start one, or set runs_dir="
        )
    )


def _list_sweeps(runs_dir: Path) -> list[RunFolder]:
    """The sweeps in `runs_dir` that began, newest first."""
    found = [RunFolder(path.absolute()) for path in runs_dir.glob("*-sweep-*") if is_sweep_folder(path)]
    begun = [sweep for sweep in found if sweep.sweep_file.exists() or sweep.status_file.exists()]
    return sorted(begun, key=lambda sweep: (sweep.path.name[:15], sweep.path.stat().st_ctime_ns), reverse=True)


def list_runs(runs_dir: Path) -> list[ListedRun]:
    """Every run with a status file in `runs_dir` or in a sweep's folder there, newest first; sweeps left out."""
    runs = []
    for path in status_files(runs_dir):
        record = RunStatusFile(path).read()
        if record is not None and not is_sweep_folder(path.parent):
            runs.append((record.started_at, path.parent.stat().st_ctime_ns, ListedRun(RunFolder(path.parent), record)))
    return [listed for _, _, listed in sorted(runs, key=lambda run: run[:2], reverse=True)]


def is_run_folder(path: Path) -> bool:
    """Whether the folder is that of a run or of a sweep."""
    return path.is_dir() and (RunFolder(path).config_file.exists() or RunFolder(path).status_file.exists())


def find_run(reference: str, runs_dir: Path) -> RunFolder:
    """The run that a reference means.

    Args:
        reference: a run folder, its name in `runs_dir`, an MLflow run id, or `latest`.
        runs_dir: folder of the runs.

    Raises:
        RunError: nothing of that kind is there, or it is a sweep.
    """
    if reference == "latest":
        runs = list_runs(runs_dir)
        if not runs:
            raise RunError(f"run=latest: there is no run in {runs_dir}; train one, or set runs_dir=")
        return runs[0].folder
    if MLFLOW_RUN_ID.fullmatch(reference):
        for listed in list_runs(runs_dir):
            if listed.record.mlflow_run_id == reference:
                return listed.folder
        raise _unknown(reference, runs_dir, "no run folder belongs to this MLflow run")
    for path in places_of(reference, runs_dir):
        if is_run_folder(path) and is_sweep_folder(path):
            jobs = ", ".join(map(str, runs_of_sweep(path) or [job.folder.path for job in list_runs(path)]))
            raise RunError(
                f"run={reference} is a sweep; finish it with -m run={reference}, or name one of its runs: "
                f"{jobs or 'there is none yet'}"
            )
        if is_run_folder(path):
            return RunFolder(path)
    raise _unknown(reference, runs_dir, "no run folder is there")


def places_of(reference: str, runs_dir: Path) -> Iterator[Path]:
    """The absolute paths that a reference may mean: as it stands, then in `runs_dir`."""
    for path in (Path(reference).expanduser(), runs_dir / reference):
        yield path.absolute()


def _unknown(reference: str, runs_dir: Path, reason: str) -> RunError:
    newest = [str(listed.folder.path) for listed in list_runs(runs_dir)[:_RUNS_LISTED]]
    cure = f"the newest runs: {', '.join(newest)}" if newest else f"there is no run in {runs_dir}"
    return RunError(f"run={reference}: {reason}; {cure}")


def _make_folder(runs_dir: Path, name: str, now: datetime) -> Path:
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if explained(error) is not None:
            raise
        raise ConfigError(
            f"runs_dir={runs_dir}: the folder can't be made ({error.strerror}); choose another place"
        ) from error
    while True:
        path = runs_dir.absolute() / f"{now:%Y%m%d-%H%M%S}-{name}-{secrets.token_hex(2)}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "model"
