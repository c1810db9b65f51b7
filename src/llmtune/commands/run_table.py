"""How a list of runs looks: a line of values each, below it where it is and what went wrong; or JSON."""

import os
import textwrap
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from llmtune.commands.run_entries import NOT_STARTED, UNKNOWN, RunEntry, is_number

WIDTH = 98
_COLUMNS = ("status", "method", "model", "loss", "time", "started")
_MOST = (None, None, 28, None, None, None)
_COLOURS = {"RUNNING": "cyan", "FINISHED": "green", "FAILED": "red", "KILLED": "yellow", NOT_STARTED: "dim"}
_MISSING = "-"
_DAY, _HOUR, _MINUTE = 86400, 3600, 60


def runs_text(entries: Sequence[RunEntry], now: datetime) -> Text:
    """The runs as coloured text, at most 98 columns wide but for long paths.

    Args:
        entries: the runs to show, in order.
        now: what "today" is, with a time zone.
    """
    rows = [_COLUMNS, *(_cells(entry, now) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    text = Text.assemble((_line(_COLUMNS, widths), "bold"))
    for entry, row in zip(entries, rows[1:], strict=True):
        text.append("\n")
        status = row[0].ljust(widths[0])
        text.append(status, style=_COLOURS.get(entry.status, "red"))
        text.append(_line(row, widths)[len(status) :])
        for line, style in _lines_below(entry):
            text.append(f"\n  {line}", style=style)
    return text


def entry_as_json(entry: RunEntry) -> dict[str, Any]:
    """The run as plain JSON values; what isn't known is null."""
    loss, losses, record = entry.loss, entry.losses, entry.record
    perplexity = entry.stage("evaluate").get("perplexity")
    return {
        "name": entry.name,
        "folder": str(entry.folder.path.absolute()),
        "sweep": entry.sweep,
        "status": entry.status,
        "error": entry.error,
        "method": entry.config.get("method.name"),
        "model": entry.config.get("model.name"),
        "data": entry.config.get("data.path") or entry.config.get("data.id") or entry.config.get("data.source"),
        "seed": entry.config.get("seed"),
        "loss": loss.value if loss else None,
        "loss_kind": loss.kind if loss else None,
        "test_loss": losses.get("test"),
        "test_perplexity": perplexity if is_number(perplexity) else None,
        "best_validation_loss": losses.get("validation"),
        "last_train_loss": losses.get("train"),
        "seconds": entry.seconds,
        "started_at": entry.started.isoformat() if entry.started else None,
        "ended_at": record.ended_at if record else None,
        "mlflow_run_id": record.mlflow_run_id if record else None,
        "problems": list(entry.problems),
    }


def shown_path(path: Path) -> str:
    """The path from the working folder where that is shorter, else absolute."""
    absolute = str(path.absolute())
    return min(os.path.relpath(absolute), absolute, key=len)


def shown_seconds(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return _MISSING
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def _cells(entry: RunEntry, now: datetime) -> tuple[str, ...]:
    loss = entry.loss
    unread = UNKNOWN if not entry.config else _MISSING
    mark = "" if loss is None or loss.kind == "test" else f" {loss.kind}"
    cells = (
        entry.status,
        str(entry.config.get("method.name", unread)),
        str(entry.config.get("model.name", unread)),
        (UNKNOWN if entry.problems else _MISSING) if loss is None else f"{loss.value:.4f}{mark}",
        shown_seconds(entry.seconds),
        _shown_time(entry.started, now),
    )
    return tuple(_cut(cell, most) for cell, most in zip(cells, _MOST, strict=True))


def _cut(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _lines_below(entry: RunEntry) -> list[tuple[str, str]]:
    sweep = f"  (sweep {entry.sweep})" if entry.sweep else ""
    lines = [(f"{shown_path(entry.folder.path)}{sweep}", "dim")]
    if entry.error:
        style = _COLOURS.get(entry.status, "red")
        lines += [(line, style) for line in textwrap.wrap(entry.error, WIDTH - 2, max_lines=2, placeholder=" …")]
    lines += [(problem, "yellow") for problem in dict.fromkeys(entry.problems)]
    return lines


def _shown_time(time: datetime | None, now: datetime) -> str:
    if time is None:
        return UNKNOWN
    local = time.astimezone(now.tzinfo)
    if local.date() == now.date():
        return f"today {local:%H:%M}"
    return f"{local:%d %b %H:%M}" if local.year == now.year else f"{local:%d %b %Y}"
