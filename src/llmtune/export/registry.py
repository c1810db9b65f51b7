"""Export formats made by name, and how one is written: checked in a folder beside the target, then renamed."""

import difflib
import shutil
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from llmtune.config.export import EXPORT_FORMATS
from llmtune.errors import ConfigError, UserError
from llmtune.export.format import ExportContext, ExportFormat
from llmtune.export.model_card import write_card
from llmtune.export.report import ParityReport
from llmtune.runs.manifest import write_json

_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ExportResult:
    """A finished export."""

    folder: Path
    report: ParityReport
    num_bytes: int
    seconds: float


def make_format(name: str) -> ExportFormat:
    """The format of a name.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in EXPORT_FORMATS:
        near = difflib.get_close_matches(name, EXPORT_FORMATS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"export.formats: unknown format {name!r}, known are {', '.join(EXPORT_FORMATS)}{hint}")
    module, _, class_name = EXPORT_FORMATS[name].partition(":")
    return getattr(import_module(module), class_name)()


def default_formats(has_adapter: bool) -> tuple[str, ...]:
    """What `export.formats=null` means: adapter and merged model, or the model alone where all weights trained."""
    return ("adapter", "hf") if has_adapter else ("hf",)


def export_format(name: str, context: ExportContext, target: Path) -> ExportResult:
    """Write one format, load it again, compare it with the trained model, and only then put it in place.

    A kill at any time, or a check that fails, leaves `target` as it was.

    Args:
        name: the format.
        context: the trained model.
        target: folder that becomes the export.

    Raises:
        ConfigError: there is no such format.
        UserError: the target isn't empty, the disk is too full, there is nothing to compare on, or the format doesn't
            fit the model.
        ExportCheckFailed: what was written differs from the trained model.
    """
    started = time.perf_counter()
    target = target.resolve()
    chosen = make_format(name)
    _put_back(target)
    _check_target(target, overwrite=context.settings.overwrite)
    if len(context.examples) == 0:
        raise UserError("there is no example to compare an export on; give data.path a file with more examples")
    chosen.check_supported(context)
    _check_room(target, chosen.num_bytes(context))
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        chosen.write(context, draft)
        report = chosen.check(context, draft)
        report.require(name)
        write_card(context, report, chosen.loading_code(context), draft)
        write_json(draft / "parity.json", report.as_json())
        _put_in_place(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    num_bytes = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return ExportResult(target, report, num_bytes, time.perf_counter() - started)


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that holds anything, unless it may be replaced."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, and an export is a folder; set export.path to another place")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UserError(
            f"{target} isn't empty; set export.overwrite=true to replace it, or export.path to another place"
        )


def _check_room(target: Path, num_bytes: int) -> None:
    """Refuse to start what the disk can't hold."""
    existing = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes + _SPARE_BYTES:
        raise UserError(
            f"the export takes about {num_bytes / 2**30:.2f} GiB and {existing} has {free / 2**30:.2f} GiB free; "
            "make room, or set export.path to another disk"
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
