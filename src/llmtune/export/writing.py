"""How one export is written: in a folder beside its target, put to the gate, and only then renamed."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from llmtune.errors import UserError
from llmtune.export.companions import write_scripts
from llmtune.export.format import ExportContext, ExportFormat
from llmtune.export.gate.check import Gate
from llmtune.export.model_card import write_card
from llmtune.export.report import ParityReport
from llmtune.export.room import check_room
from llmtune.logs import progress
from llmtune.runs.manifest import CHECK_FILE, folder_bytes, write_json
from llmtune.signals import asked_to_stop, end_as, finishing


@dataclass(frozen=True)
class ExportResult:
    """A finished export."""

    folder: Path
    report: ParityReport
    num_bytes: int
    seconds: float


def write_export(
    chosen: ExportFormat, context: ExportContext, target: Path, gate: Gate, *, is_ours: bool = False
) -> ExportResult:
    """Write one format, ask it in a process of its own, compare it with the trained model, and then put it in place.

    A kill at any time, or a check that fails, leaves `target` as it was.

    Args:
        chosen: the format, which can hold the model.
        context: the trained model.
        target: folder that becomes the export.
        gate: compares with the trained model.
        is_ours: whether the target is in a run's folder, where what stands there may always be replaced; elsewhere
            `export.overwrite` says whether an export is.

    Raises:
        UserError: the target isn't empty, the disk is too full, or there is nothing to compare on.
        ExportCheckFailed: what was written differs from the trained model.
    """
    started = time.perf_counter()
    target = target.resolve()
    if len(context.examples) == 0:
        raise UserError("there is no example to compare an export on; give data.path a file with more examples")
    check_room(target, chosen.num_bytes(context))
    with _alone(target):
        _put_back(target)
        if not is_ours:
            check_target(target, overwrite=context.settings.overwrite)
        report = _write_draft(chosen, context, target, gate)
    return ExportResult(target, report, folder_bytes(target), time.perf_counter() - started)


def _write_draft(chosen: ExportFormat, context: ExportContext, target: Path, gate: Gate) -> ParityReport:
    """Write beside the target, and put it in its place once it passed."""
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
            report.require(chosen.name)
            line.advance(1, "finishing")
            write_card(context, chosen, report, draft)
            write_json(draft / CHECK_FILE, report.as_json())
            _put_in_place(draft, target)
            line.advance(1, "done")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return report


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that holds anything, unless it is an export that may be replaced.

    Raises:
        UserError: names what is there.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, and an export is a folder; set export.path to another place")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{target} isn't empty; set export.overwrite=true to replace it, or export.path to another place"
        )
    if not (target / CHECK_FILE).exists():
        raise UserError(
            f"{target} holds files and is no export (it has no {CHECK_FILE}), so it isn't replaced; move them, or set "
            "export.path to another place"
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
    """Rename the checked draft to the target, over the export that was there; a signal waits until it is done."""
    with finishing():
        if target.exists():
            target.rename(_old(target))
        try:
            draft.rename(target)
        except BaseException:
            _put_back(target)
            raise
        shutil.rmtree(_old(target), ignore_errors=True)
        number = asked_to_stop()
    if number is not None:
        end_as(number)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep another command from writing the same export meanwhile.

    Raises:
        UserError: one is at it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
    try:
        with lock:
            try:
                yield
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(f"another command is writing {target}; wait for it, or set export.path") from error
