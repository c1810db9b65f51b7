"""Following a live run from another terminal: it is only read, never touched."""

import os
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from llmtune.arguments import STAGES
from llmtune.commands.run_entries import FRESH_SECONDS, NOT_STARTED, UNKNOWN, RunEntry, is_number, metrics_entry
from llmtune.commands.run_table import shown_path, shown_seconds
from llmtune.errors import RunError

_POLL_SECONDS = 0.5
_PLAIN_LINE_SECONDS = 5.0
_STEPS_TIMED = 50


class MetricsTail:
    """Reads a metrics file as it grows.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._identity: int | None = None
        self._rest = b""

    def new_entries(self) -> list[dict[str, Any]]:
        """The lines that became whole since the last call; all of them again where the file was written anew."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._identity or found.st_size < self._offset:
                    self._identity, self._offset, self._rest = found.st_ino, 0, b""
                file.seek(self._offset)
                grown = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(grown)
        *lines, self._rest = (self._rest + grown).split(b"\n")
        return [entry for entry in (metrics_entry(line.decode(errors="replace")) for line in lines) if entry]


@dataclass
class Progressed:
    """How far training has come."""

    total: int | None = None
    """Steps of the run."""
    num_processes: int = 1
    """Processes that train."""
    step: int = 0
    """Steps done."""
    loss: float | None = None
    """Loss of that step."""
    validation: tuple[int, float] | None = None
    """Step and loss of the last validation."""
    tokens: float = 0.0
    """Tokens so far."""
    timed: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_STEPS_TIMED))
    """Tokens of each of the last steps, and its seconds."""
    ended: bool = False
    """Whether the run has ended, so that no time is left."""

    def add(self, entry: dict[str, Any]) -> None:
        """Take in a line of the metrics file."""
        if is_number(entry.get("train/loss")):
            self.step, self.loss = entry["step"], entry["train/loss"]
        if is_number(entry.get("evaluate/validation_loss")):
            self.validation = (entry["step"], entry["evaluate/validation_loss"])
        if is_number(entry.get("train/num_tokens")):
            in_step, self.tokens = entry["train/num_tokens"] - self.tokens, entry["train/num_tokens"]
            speed = entry.get("train/tokens_per_second_per_device")
            if is_number(speed) and speed > 0 and in_step > 0:
                self.timed.append((in_step, in_step / (speed * self.num_processes)))

    @property
    def speed(self) -> float | None:
        """Tokens per second of all processes, over the last steps together."""
        seconds = sum(each for _, each in self.timed)
        return sum(tokens for tokens, _ in self.timed) / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds of training that are left at this speed, validations not counted."""
        if self.ended or self.total is None or not self.speed or not self.step:
            return None
        return max(0, self.total - self.step) * self.tokens / self.step / self.speed

    def in_words(self, *, short: bool = False) -> str:
        """Losses, speed and time left, as far as they are known; `short` leaves out when it was validated."""
        parts = [f"loss {self.loss:.4f}"] if self.loss is not None else []
        if self.validation is not None:
            when = "" if short else f" (step {self.validation[0]})"
            parts.append(f"validation {self.validation[1]:.4f}{when}")
        if self.speed is not None:
            parts.append(f"{self.speed:,.0f} tokens/s")
        if self.seconds_left:
            parts.append(f"{shown_seconds(self.seconds_left)} left")
        return ", ".join(parts)


class _Screen:
    """A live bar on a terminal; elsewhere plain lines, one every five seconds and one a validation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(12),
                TextColumn("{task.fields[words]}", markup=False, table_column=Column(no_wrap=True)),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("waiting", total=None, words="")
        self._last_line = float("-inf")
        self._shown: tuple[int, object] = (0, None)

    def live(self) -> AbstractContextManager[object]:
        """Within it the bar, where there is one, is drawn."""
        return self._bar or nullcontext()

    def update(self, seen: Progressed) -> None:
        """Show how far it has come."""
        if self._bar is not None:
            steps = f"step {seen.step}/{seen.total or UNKNOWN}"
            self._bar.update(
                self._task, description=steps, total=seen.total, completed=seen.step, words=seen.in_words(short=True)
            )
            return
        now, shown = time.monotonic(), (seen.step, seen.validation)
        if shown == self._shown:
            return
        due = now - self._last_line >= _PLAIN_LINE_SECONDS or seen.validation != self._shown[1]
        if due or seen.ended:
            self._last_line, self._shown = now, shown
            self.say(f"step {seen.step}/{seen.total or UNKNOWN}: {seen.in_words()}")

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def follow(entry: RunEntry, poll_seconds: float = _POLL_SECONDS) -> int:
    """Show a run until it ends; the exit status: 0 where it finished, else 1.

    Args:
        entry: the run.
        poll_seconds: pause between two looks.

    Raises:
        RunError: the run doesn't begin within a minute, or its status file is damaged.
    """
    screen, folder = _Screen(Console()), entry.folder
    screen.say(shown_path(folder.path))
    _wait_for_start(entry, screen, poll_seconds)
    tail, seen = MetricsTail(folder.metrics_file), Progressed()
    with screen.live():
        now = _look(entry, seen, tail, screen)
        stages = _finished_stages(now)
        while not seen.ended:
            time.sleep(poll_seconds)
            now = _look(entry, seen, tail, screen)
            for stage in _finished_stages(now)[len(stages) :]:
                screen.say(f"{stage}: finished")
            stages = _finished_stages(now)
    return _say_end(now, screen)


def _look(entry: RunEntry, seen: Progressed, tail: MetricsTail, screen: _Screen) -> RunEntry:
    """Show how far the run is, and return it as it stands."""
    now = RunEntry(entry.folder)
    if now.status != "RUNNING":
        now = RunEntry(entry.folder)  # it may have recorded its end between the looks at its file and its process
        seen.ended = True
    choices = now.manifest.get("choices", {})
    seen.total = choices.get("total_steps", seen.total)
    seen.num_processes = choices.get("num_processes", seen.num_processes)
    for line in tail.new_entries():
        seen.add(line)
    screen.update(seen)
    return now


def _finished_stages(entry: RunEntry) -> list[str]:
    return [stage for stage in STAGES if stage in entry.manifest.get("stages", {})]


def _wait_for_start(entry: RunEntry, screen: _Screen, poll_seconds: float) -> None:
    deadline, waited = time.monotonic() + FRESH_SECONDS, False
    while (status := RunEntry(entry.folder).status) == NOT_STARTED:
        if not entry.is_fresh or time.monotonic() > deadline:
            raise RunError(f"{shown_path(entry.folder.path)} has not started; start it: llmtune train run={entry.name}")
        if not waited:
            screen.say("waiting for it to start")
        waited = True
        time.sleep(poll_seconds)
    if status == UNKNOWN:
        raise RunError(
            f"{entry.folder.status_file} is damaged, so it can't be followed; its log: {entry.folder.log_file}"
        )


def _say_end(entry: RunEntry, screen: _Screen) -> int:
    figures = "".join(
        f", {kind} loss {entry.losses[kind]:.4f}" for kind in ("test", "validation") if kind in entry.losses
    )
    reason = f": {entry.error}" if entry.error else ""
    screen.say(f"{entry.status} after {shown_seconds(entry.seconds)}{figures}{reason}")
    if entry.status == "FINISHED":
        return 0
    if entry.folder.log_file.exists():
        screen.say(f"log: {shown_path(entry.folder.log_file)}")
    return 1
