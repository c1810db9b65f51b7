"""How one export is written: in a folder beside its target, put to the gate, and only then renamed."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from llmtune.errors import UserError
from llmtune.export.companions import write_scripts
from llmtune.export.format import ExportContext, ExportFormat
from llmtune.export.gate.check import Gate
from llmtune.export.model_card import write_card
from llmtune.export.report import ParityReport
from llmtune.logs import progress
from llmtune.runs.manifest import write_json

_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ExportResult:
    """A finished export."""

    folder: Path
    report: ParityReport
    num_bytes: int
    seconds: float


def write_export(
    chosen: ExportFormat, context: ExportContext, target: Path, gate: Gate, *, overwrite: bool
) -> ExportResult:
    """Write one format, ask it in a process of its own, compare it with the trained model, and then put it in place.

    A kill at any time, or a check that fails, leaves `target` as it was.

    Args:
        chosen: the format, which can hold the model.
        context: the trained model.
        target: folder that becomes the export.
        gate: compares with the trained model.
        overwrite: whether a target that isn't empty is replaced.

    Raises:
        UserError: the target isn't empty, the disk is too full, or there is nothing to compare on.
        ExportCheckFailed: what was written differs from the trained model.
    """
    started = time.perf_counter()
    target = target.resolve()
    _put_back(target)
    _check_target(target, overwrite=overwrite)
    if len(context.examples) == 0:
        raise UserError("there is no example to compare an export on; give data.path a file with more examples")
    check_room(target, chosen.num_bytes(context))
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        with progress(f"export {chosen.name}", total=3) as line:
            line.advance(0, "writing")
            chosen.write(context, draft)
            write_scripts(chosen.runtime, draft)
            line.advance(1, "checking")
            report = gate.check(chosen, draft)
            line.advance(1, "finishing")
            report.require(chosen.name)
            write_card(context, chosen, report, draft)
            write_json(draft / "parity.json", report.as_json())
            _put_in_place(draft, target)
            line.advance(1, "done")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    num_bytes = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return ExportResult(target, report, num_bytes, time.perf_counter() - started)


def check_room(target: Path, num_bytes: int) -> None:
    """Refuse to start what the disk can't hold.

    Raises:
        UserError: there is too little room.
    """
    existing = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes + _SPARE_BYTES:
        raise UserError(
            f"the export takes about {num_bytes / 2**30:.2f} GiB and {existing} has {free / 2**30:.2f} GiB free; "
            "make room, or set export.path to another disk"
        )


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that holds anything, unless it may be replaced."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, and an export is a folder; set export.path to another place")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UserError(
            f"{target} isn't empty; set export.overwrite=true to replace it, or export.path to another place"
        )


def _old(target: Path) -> Path:
    """Where a target that is being replaced waits."""
    return target.with_name(f".{target.name}.old")


def _put_back(target: Path) -> None:
    """Undo a replacement that was cut off between its two renames."""
    if _old(target).exists() and not target.exists():
        _old(target).rename(target)
    shutil.rmtree(_old(target), ignore_errors=True)


def _put_in_place(draft: Path, target: Path) -> None:
    """Rename the checked draft to the target, over the export that was there."""
    if target.exists():
        target.rename(_old(target))
    draft.rename(target)
    shutil.rmtree(_old(target), ignore_errors=True)
