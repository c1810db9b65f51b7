"""What a person sees while llmtune works: lines, tables, progress; and which library noise is silenced."""

import errno
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from llmtune.credentials import without_credentials

logger = logging.getLogger("llmtune")
logger.addHandler(logging.NullHandler())  # what is shown is printed; without a handler Python would show it again


class _Terminal(Console):
    """What is shown goes here; a reader that is gone, or a terminal, ends no work: from then on nothing is shown."""

    def on_broken_pipe(self) -> None:
        """Show nothing more, and leave nothing to be written as Python ends."""
        self.quiet = True
        with suppress(OSError, ValueError, AttributeError):  # it may be no file, or none that is open
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal that is gone
                raise
            self.on_broken_pipe()


_console = _Terminal(
    soft_wrap=True,
    highlight=False,
    markup=False,
    emoji=False,
    width=None if sys.stdout and sys.stdout.isatty() else 120,
)
_PLAIN_LINE_SECONDS = 15.0
_SHORT_WORK_SECONDS = 5.0
_NOTEBOOK_SECONDS = 0.5
_NOTEBOOK_HTML = '<pre style="white-space:pre;line-height:normal">{code}</pre>'
_SILENCED = {
    "alembic": logging.WARNING,  # "Running upgrade …", a line a migration, when a store is made
    "mlflow.store.db.utils": logging.WARNING,  # "Creating initial MLflow database tables..."
    "mlflow.system_metrics.system_metrics_monitor": logging.ERROR,  # start, stop, and a store that is away
    "mlflow.tracking.fluent": logging.WARNING,  # "Experiment … does not exist. Creating a new experiment."
    "urllib3.connectionpool": logging.ERROR,  # "Retrying …" for a server that is away, which we say once
}
_bars: list[Progress] = []


def start_logging(log_file: Path | None, *, quiet: bool = False) -> None:
    """Send what is said to the terminal and, with its time, to a run's log file.

    Args:
        log_file: file that is appended to; None for no file.
        quiet: say nothing on the terminal (processes other than the first).
    """
    _console.quiet = quiet
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    if log_file is not None:
        handler = _LogFile(log_file, encoding="utf-8")
        handler.setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    else:
        logger.addHandler(logging.NullHandler())


class _LogFile(logging.FileHandler):
    """A run's log, which ends no run: where it can't be written to, as on a full disk, lines are left out."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line; what the run can't do without fails by itself, and that is shown."""


class _WithoutSecrets(logging.Formatter):
    """Writes no secret of the environment and no credentials of a URI, whatever is said."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        return without_credentials(super().format(record))


def say(message: str) -> None:
    """Show one line of information."""
    logger.info(message)
    _console.print(without_credentials(message))


def show(text: RenderableType) -> None:
    """Show something drawn, such as coloured text; it isn't written to the log file."""
    _console.print(text)


def warn(message: str) -> None:
    """Show a warning with its cure."""
    logger.warning(message)
    _console.print(f"warning: {without_credentials(message)}", style="yellow")


def fail(message: str) -> None:
    """Show an error on standard error."""
    logger.error(message)
    print(f"llmtune: {without_credentials(message)}", file=sys.stderr, flush=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Show a table; the first column reads left, the others right."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number == 0 else "right", overflow="fold")
    kept = [tuple(row) for row in rows]
    for row in kept:
        table.add_row(*map(Text, row))
    _console.print(table)
    logger.info("%s\n%s", title, "\n".join(" | ".join(row).replace("\n", " ") for row in [tuple(columns), *kept]))


class NotebookProgress(Progress):
    """Bars in one output of a notebook's cell, which IPython draws anew; it needs no widgets and starts no thread."""

    _shown: Any = None
    _drawn = 0.0

    def start(self) -> None:
        """Nothing: the output opens with the first task."""

    def stop(self) -> None:
        """Draw how far the work came."""
        self.refresh()

    def update(self, *arguments: Any, **changes: Any) -> None:
        """Change a task, and draw anew what was last drawn a while ago."""
        super().update(*arguments, **changes)
        if time.monotonic() - self._drawn >= _NOTEBOOK_SECONDS:
            self.refresh()

    def refresh(self) -> None:
        """Draw the tasks as they are."""
        self._drawn = time.monotonic()
        if self._shown is None:
            self._shown = import_module("IPython.display").display(self._picture(), raw=True, display_id=True)
        else:
            self._shown.update(self._picture(), raw=True)

    def _picture(self) -> dict[str, str]:
        drawing = Console(file=io.StringIO(), record=True, width=_console.width, force_jupyter=False)
        drawing.print(self.get_renderable())
        html = drawing.export_html(inline_styles=True, code_format=_NOTEBOOK_HTML, clear=False)
        return {"text/html": html, "text/plain": drawing.export_text()}


class ProgressLine:
    """A progress bar on a terminal or in a notebook; else a line every 15 seconds and at the end of longer work."""

    def __init__(self, description: str, total: int, bar: Progress | None, task: TaskID | None) -> None:
        self._description = description
        self._total = total
        self._bar = bar
        self._task = task
        self._done = 0
        self._started = self._last_line = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more of the total as done and show `note` beside the bar."""
        self._done += amount
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount, note=note)
            return
        now = time.monotonic()
        ends = self._done == self._total and now - self._started >= _SHORT_WORK_SECONDS
        if now - self._last_line >= _PLAIN_LINE_SECONDS or ends:
            self._last_line = now
            left = (now - self._started) / max(1, self._done) * (self._total - self._done)
            say(f"{self._description}: {self._done}/{self._total} {note} ({left:.0f} s left)")


@contextmanager
def progress(description: str, total: int) -> Iterator[ProgressLine]:
    """Show how far a piece of long work has come.

    Args:
        description: what is being done.
        total: how many units the work has.
    """
    if not (_console.is_terminal or _console.is_jupyter) or _console.quiet:
        yield ProgressLine(description, total, None, None)
        return
    if _bars:
        task = _bars[-1].add_task(description, total=total, note="")
        yield ProgressLine(description, total, _bars[-1], task)
        _bars[-1].remove_task(task)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    times = (
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    kind = NotebookProgress if _console.is_jupyter else Progress
    with kind(*columns, *times, console=_console) as bar:
        _bars.append(bar)
        try:
            yield ProgressLine(description, total, bar, bar.add_task(description, total=total, note=""))
        finally:
            _bars.remove(bar)


def silence_libraries() -> None:
    """Silence, by name, what libraries print that no user can act on; everything else is passed on.

    Call before torch, transformers, peft, bitsandbytes and mlflow are imported.
    """
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.script_method` is deprecated", category=DeprecationWarning)
    # tqdm's, in a notebook without ipywidgets, on bars that aren't ours
    warnings.filterwarnings("ignore", message="IProgress not found")
    # SQLAlchemy's SADeprecationWarning, on what mlflow asks of it
    warnings.filterwarnings("ignore", message=r".*noload", category=DeprecationWarning, module=r"mlflow\.")
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_about_kernels)
    logging.getLogger("transformers.tokenization_utils_base").addFilter(_is_not_about_length)
    logging.getLogger("transformers.modeling_utils").addFilter(_is_not_about_loss)
    for name, level in _SILENCED.items():
        logging.getLogger(name).setLevel(level)


def _is_not_about_kernels(record: logging.LogRecord) -> bool:
    """False for bitsandbytes' remark that an optional faster 4-bit kernel isn't installed."""
    return "Failed to load CPU gemm_4bit_forward" not in record.getMessage()


def _is_not_about_length(record: logging.LogRecord) -> bool:
    """False for transformers' remark that a text is longer than the model reads: we say so where it matters."""
    return "Token indices sequence length" not in record.getMessage()


def _is_not_about_loss(record: logging.LogRecord) -> bool:
    """False for transformers' remark on the name of a loss, made where TorchScript looks at all that a model has."""
    return "was set in the config but it is unrecognized" not in record.getMessage()
