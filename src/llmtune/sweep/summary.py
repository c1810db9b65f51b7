"""The table that a sweep ends with, read from the records of its runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmtune.errors import RunError
from llmtune.runs.manifest import Manifest
from llmtune.sweep.job import JobOutcome

COLUMNS = (
    *("job", "status", "test loss", "perplexity", "trainable parameters"),
    *("peak memory (GiB)", "tokens/s per device", "seconds"),
)
_MISSING = "-"


def summarise(outcomes: Sequence[JobOutcome]) -> list[dict[str, Any]]:
    """One entry a job of plain JSON values; what its run did not record is null.

    Args:
        outcomes: what became of the jobs.
    """
    return [_entry(outcome) for outcome in outcomes]


def table_rows(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table's rows; the first is the base model where a run measured it.

    Args:
        entries: what `summarise` returned.
    """
    rows = [_row(entry) for entry in entries]
    base = next((entry for entry in entries if entry["base_loss"] is not None), None)
    if base is None:
        return rows
    return [_row({"job": "base model", "loss": base["base_loss"], "perplexity": base["base_perplexity"]}), *rows]


def markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown, for the sweep's description in MLflow.

    Args:
        entries: what `summarise` returned.
    """
    lines = [COLUMNS, ("---",) * len(COLUMNS), *table_rows(entries)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    failures = [f"- {entry['job']}: {entry['error']}" for entry in entries if entry["error"]]
    return "\n".join([table, "", *failures]).rstrip()


def _entry(outcome: JobOutcome) -> dict[str, Any]:
    train, evaluate = _results(outcome)
    return {
        "job": outcome.job.name,
        "status": outcome.status or "NOT STARTED",
        "error": outcome.error,
        "differences": dict(outcome.job.differences),
        "folder": str(outcome.job.folder.path),
        "mlflow_run_id": outcome.mlflow_run_id,
        "loss": evaluate.get("loss"),
        "perplexity": evaluate.get("perplexity"),
        "bits_per_byte": evaluate.get("bits_per_byte"),
        "base_loss": evaluate.get("base_loss"),
        "base_perplexity": evaluate.get("base_perplexity"),
        "num_trainable": train.get("num_trainable"),
        "peak_memory_gib": train.get("peak_memory_gib"),
        "tokens_per_second_per_device": train.get("tokens_per_second_per_device"),
        "train_seconds": train.get("seconds"),
        "seconds": round(outcome.seconds, 1),
    }


def _results(outcome: JobOutcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """The train and evaluate stages' results; empty for a run whose manifest is missing or damaged."""
    try:
        manifest = Manifest(outcome.job.folder.manifest_file)
        return manifest.stage("train"), manifest.stage("evaluate")
    except (RunError, KeyError, TypeError):
        return {}, {}


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(entry["job"]),
        entry.get("status", _MISSING),
        _number(entry.get("loss"), ".4f"),
        _number(entry.get("perplexity"), ".3f"),
        _number(entry.get("num_trainable"), ",.0f"),
        _number(entry.get("peak_memory_gib"), ".2f"),
        _number(entry.get("tokens_per_second_per_device"), ",.0f"),
        _number(entry.get("seconds"), ",.0f"),
    )


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else _MISSING
