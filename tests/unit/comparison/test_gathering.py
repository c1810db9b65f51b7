"""Runs that can't be counted: what is said of them, and of which nothing."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_reading import MANIFEST, TRAIN, make_run, without

from llmtune.comparison.gathering import Candidate, compare_candidates
from llmtune.config.compare import CompareConfig
from llmtune.runs.layout import RunFolder

pytestmark = pytest.mark.fast


def missing(*candidates: Candidate) -> dict[str, str | None]:
    """The name and reason of each run that isn't counted."""
    found = compare_candidates(candidates, CompareConfig(), "a sweep")
    return {run.name: run.error for run in found.missing}


def candidate(folder: RunFolder, status: str = "FINISHED", error: str | None = None) -> Candidate:
    return Candidate(name=folder.path.name, folder=folder, status=status, error=error)


def broken_run(path: Path) -> RunFolder:
    folder = make_run(path)
    folder.predictions_file("tuned").unlink()
    return folder


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        ("RUNNING", None, "still running"),
        ("FAILED", "out of memory", "out of memory"),
        ("FAILED", None, "hasn't measured its weights; type"),
        ("FINISHED", None, "hasn't measured its weights; type"),
    ],
)
def test_a_run_that_has_not_measured_has_its_reason(tmp_path, status, error, reason) -> None:
    folder = make_run(tmp_path / "run", manifest=MANIFEST | {"stages": {"train": TRAIN}})
    found = missing(candidate(folder, status, error))["run"]
    assert found is not None and reason in found
    assert ("type" in found) == ("type" in reason)


@pytest.mark.parametrize(("error", "reason"), [(None, "not started"), ("too many failed", "too many failed")])
def test_a_job_that_was_not_started_is_told_so(tmp_path, error, reason) -> None:
    assert missing(candidate(RunFolder(tmp_path / "run"), "NOT STARTED", error)) == {"run": reason}


def test_a_run_whose_status_is_lost_is_not_said_not_to_have_started(tmp_path) -> None:
    found = missing(candidate(broken_run(tmp_path / "run"), "NOT STARTED"))["run"]
    assert found is not None and "tuned.parquet is missing" in found


def test_a_run_that_is_still_exporting_counts(tmp_path) -> None:
    assert missing(candidate(make_run(tmp_path / "run"), "RUNNING")) == {}


def test_a_run_that_was_measured_again_is_not_missed(tmp_path) -> None:
    broken = broken_run(tmp_path / "broken")
    source = {"source_run": str(broken.path), "runs_dir": "/elsewhere", "hardware": {"num_threads": 1}}
    own = without(MANIFEST, "choices") | {"stages": {"evaluate": {"checkpoint": "checkpoint-8"}}}
    again = make_run(tmp_path / "again", {**source, "source_weights": str(broken.checkpoints / "checkpoint-8")}, own)
    assert missing(candidate(broken), candidate(again)) == {}
    assert list(missing(candidate(broken))) == ["broken"]


@pytest.mark.parametrize(
    "other", [{"seed": 4}, {"method": {"name": "lora", "rank": 16}}, {"source_weights": "checkpoint-4"}]
)
def test_a_run_is_missed_where_its_row_and_seed_are_not_counted(tmp_path, other) -> None:
    broken = broken_run(tmp_path / "broken")
    if "source_weights" in other:
        weights = str(broken.checkpoints / other["source_weights"])
        other = {"source_run": str(broken.path), "source_weights": weights}
    assert list(missing(candidate(broken), candidate(make_run(tmp_path / "other", other)))) == ["broken"]
