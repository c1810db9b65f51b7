"""Which runs a comparison takes, and which it can't."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.comparison.compare import compare
from llmtune.comparison.outcome import Comparison, MissingRun
from llmtune.comparison.reading import UNTRAINED, read_config, read_result
from llmtune.comparison.results import RunResult
from llmtune.comparison.rows import is_same_setting
from llmtune.config.compare import CompareConfig
from llmtune.errors import RunError
from llmtune.runs.layout import RunFolder


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run that was asked for."""

    name: str
    """What the person knows it by: a job's name, or the folder's."""
    folder: RunFolder
    status: str
    """FINISHED, or what became of it instead: RUNNING, FAILED, KILLED, NOT STARTED."""
    error: str | None = None
    """Why it isn't FINISHED."""


def compare_candidates(candidates: Sequence[Candidate], settings: CompareConfig, title: str) -> Comparison:
    """The comparison of those that have measured their weights, the others named in it.

    A run that failed after its evaluation, in an export say, counts: what it measured stands. One that can't be counted
    isn't named where another stands in for it: the same setting and seed, measured again in a run of its own, say.

    Args:
        candidates: the runs.
        settings: what counts as good enough, and what time costs.
        title: what the comparison is called.
    """
    results: list[RunResult] = []
    unread: list[tuple[Candidate, RunError]] = []
    for candidate in candidates:
        try:
            results.append(read_result(candidate.folder))
        except RunError as error:
            unread.append((candidate, error))
    missing = [
        MissingRun(name=candidate.name, status=candidate.status, error=_reason(candidate, error))
        for candidate, error in unread
        if not _is_counted(candidate.folder, results)
    ]
    return compare(results, settings, title, missing)


def _reason(candidate: Candidate, error: RunError) -> str:
    """Why a run can't be counted, from what became of it or else from what its record lacks."""
    if candidate.status == "RUNNING":
        return "still running"
    if candidate.status == "NOT STARTED" and not candidate.folder.manifest_file.exists():
        return candidate.error or "not started"
    return candidate.error if candidate.status != "FINISHED" and candidate.error else str(error)


def _is_counted(folder: RunFolder, results: Sequence[RunResult]) -> bool:
    """Whether one of the results has the setting and seed of a run that has none itself."""
    try:
        config = read_config(folder)
    except RunError:
        return False
    return any(
        is_same_setting(result.config, config) and (result.method == UNTRAINED or result.seed == config.get("seed"))
        for result in results
    )
