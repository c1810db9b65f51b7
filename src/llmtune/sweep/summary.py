"""What became of a sweep's jobs, read from the records of its runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmtune.errors import RunError
from llmtune.runs.manifest import Manifest
from llmtune.sweep.job import JobOutcome

COLUMNS = ("job", "status", "test loss", "seconds")
_MISSING = "-"


def summarise(outcomes: Sequence[JobOutcome]) -> list[dict[str, Any]]:
    """One entry a job of plain JSON values; what its run did not record is null.

    Args:
        outcomes: what became of the jobs.
    """
    return [_entry(outcome) for outcome in outcomes]


def table_rows(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table's rows; what the runs are worth beside each other is the comparison's to say.

    Args:
        entries: what `summarise` returned.
    """
    return [
        (str(entry["job"]), entry["status"], _number(entry["loss"], ".4f"), _number(entry["seconds"], ",.0f"))
        for entry in entries
    ]


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


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else _MISSING
