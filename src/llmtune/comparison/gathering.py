"""Which runs a comparison takes, and which it can't."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.comparison.compare import compare
from llmtune.comparison.outcome import Comparison, MissingRun
from llmtune.comparison.reading import read_result
from llmtune.comparison.results import RunResult
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
    """FINISHED, or what became of it instead."""
    error: str | None = None
    """Why it isn't FINISHED."""


def compare_candidates(candidates: Sequence[Candidate], settings: CompareConfig, title: str) -> Comparison:
    """The comparison of those that have measured their weights, the others named in it.

    A run that failed after its evaluation, in an export say, counts: what it measured stands.

    Args:
        candidates: the runs.
        settings: what counts as good enough, and what time costs.
        title: what the comparison is called.
    """
    results: list[RunResult] = []
    missing: list[MissingRun] = []
    for candidate in candidates:
        try:
            results.append(read_result(candidate.folder))
        except RunError as error:
            reason = candidate.error if candidate.status != "FINISHED" and candidate.error else str(error)
            missing.append(MissingRun(name=candidate.name, status=candidate.status, error=reason))
    return compare(results, settings, title, missing)
