"""The runs that sweeps and references name, for a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.comparison.gathering import Candidate
from llmtune.errors import RunError
from llmtune.logs import warn
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import MLFLOW_RUN_ID, find_run, find_sweep, is_sweep_folder, places_of, runs_of_sweep
from llmtune.runs.status import RunStatusFile
from llmtune.sweep.plan import read_plan


@dataclass(frozen=True)
class NamedCandidates:
    """What was named."""

    candidates: Sequence[Candidate]
    """The runs, each once."""
    sweep: RunFolder | None
    """The sweep, where one alone was named."""


def candidates_of(references: Sequence[str], runs_dir: Path) -> NamedCandidates:
    """The runs to compare.

    Args:
        references: sweeps and runs, each by its folder, its name in `runs_dir` or its MLflow run id; `latest` is the
            newest sweep.
        runs_dir: folder of the runs and sweeps.

    Raises:
        RunError: one leads nowhere, or to a sweep without runs.
    """
    found: dict[Path, Candidate] = {}
    sweeps: list[RunFolder | None] = []
    for reference in references:
        sweep = _sweep(reference, runs_dir)
        sweeps.append(sweep)
        named = _runs_of(sweep) if sweep is not None else [_candidate(find_run(reference, runs_dir))]
        found |= {candidate.folder.path.absolute(): candidate for candidate in named}
    return NamedCandidates(list(found.values()), sweeps[0] if len(sweeps) == 1 else None)


def _sweep(reference: str, runs_dir: Path) -> RunFolder | None:
    """The sweep that a reference names; None where it names a run, or nothing."""
    if reference == "latest":
        return find_sweep(reference, runs_dir)
    if any(is_sweep_folder(path) and path.is_dir() for path in places_of(reference, runs_dir)):
        return find_sweep(reference, runs_dir)
    if not MLFLOW_RUN_ID.fullmatch(reference):
        return None
    try:
        return find_sweep(reference, runs_dir)
    except RunError:
        return None


def _runs_of(sweep: RunFolder) -> list[Candidate]:
    """A sweep's jobs; those of its summary where an older llmtune made it, or its plan is damaged, which is said.

    Raises:
        RunError: it names none.
    """
    problem = ""
    if sweep.sweep_file.exists():
        try:
            return [_candidate(job.folder, job.name) for job in read_plan(sweep).jobs]
        except RunError as error:
            problem = f" ({error})"
    runs = [_candidate(RunFolder(path)) for path in runs_of_sweep(sweep.path)]
    if not runs:
        raise RunError(f"{sweep.path} names no runs{problem}; name them with runs=[A,B]")
    if problem:
        warn(f"the runs are those that {sweep.summary_file} names{problem}")
    return runs


def _candidate(folder: RunFolder, name: str | None = None) -> Candidate:
    record = RunStatusFile(folder.status_file).read()
    status = record.status if record is not None else "NOT STARTED"
    return Candidate(
        name=name or folder.path.name, folder=folder, status=status, error=record.error if record is not None else None
    )
