"""What the gate's questions brought back, from the trained model here or from an export in a process of its own."""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmtune.errors import ExportCheckFailed
from llmtune.export.gate import answering
from llmtune.export.gate.questions import Questions

_LONGEST_REASON = 600
_IMPORTED_ONCE = ("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "peft")
"""What takes seconds to import and most exports of a run need."""


@dataclass(frozen=True)
class Answers:
    """What a model said; arrays as `gate.answering` describes them."""

    logits: list[np.ndarray]
    long: np.ndarray
    padded: np.ndarray
    greedy: np.ndarray
    gaps: np.ndarray
    cache_kl: np.ndarray
    losses: np.ndarray
    text: dict[str, Any]

    @property
    def loss(self) -> float | None:
        """Mean nats per supervised token; None where the examples had none."""
        return float(self.losses.mean()) if len(self.losses) else None


def answers_here(runtime: answering.AnsweringRuntime, questions: Questions, work: Path) -> Answers:
    """Put the questions to a model of this process; `work` is a folder for what passes between."""
    questions.save(work)
    answering.answer(runtime, work, work / "answers")
    return read_answers(work / "answers")


@dataclass(frozen=True)
class Asked:
    """An export, and how it is run."""

    folder: Path
    judge: str = "runtime"
    """Module of the `Runtime` that is asked: the folder's own, or another that reads the files."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the `Runtime` beside the folder."""


def answers_of(asked: Asked, questions: Questions, work: Path) -> Answers:
    """Put the questions to an export in a process of its own.

    Args:
        asked: the export.
        questions: what is asked.
        work: folder for what passes between.

    Raises:
        ExportCheckFailed: it doesn't run there.
    """
    questions.save(work)
    answers = work / "answers"
    request = [str(asked.folder), asked.judge, str(work), str(answers), dict(asked.options)]
    status = _asker().ask(request)
    if status is None:  # another one answers
        status = _asker().ask(request) or 0
    if status != 0 or not (answers / "text.json").exists():
        raise ExportCheckFailed(f"the export was written and doesn't run: {_reason(status, answers / 'error.txt')}")
    return read_answers(answers)


class _Asker:
    """A process that has imported what exports need, and starts another for each one that is asked.

    With a GPU it imports nothing beforehand: a library may start CUDA, which no forked process can use.
    """

    def __init__(self) -> None:
        modules = () if torch.cuda.is_available() else _IMPORTED_ONCE
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        # -P: only the export's own folder, and what is installed; -B: no cache of bytecode in that folder
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-W", "ignore", answering.__file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            start_new_session=True,  # a signal to us isn't its own
        )
        atexit.register(self.close)

    @property
    def is_there(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, request: list[Any]) -> int | None:
        """The exit status of the process that answers; negative is the signal that ended it.

        None where this one had ended by itself, for want of requests.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            self.close()
            if self._process.returncode == 0:
                return None
            raise ExportCheckFailed(f"the process that asks exports ended: {self._last_words()}") from None
        except BaseException:
            self.close()  # what it is still at is of no use
            raise

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = [line for line in self._said.read().splitlines() if line.strip()]
        return lines[-1] if lines else f"status {self._process.returncode}"

    def close(self) -> None:
        """End it, and whatever it asks."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()


def start_asking() -> None:
    """Let the process that asks import its libraries while other work is done."""
    _asker()


def close_asker() -> None:
    """End the process that asks, where there is one; the next export starts another."""
    while _askers:
        _askers.pop().close()


def _asker() -> _Asker:
    """The process that asks; one for all exports of this process, and another where it ended."""
    if not _askers or not _askers[-1].is_there:
        close_asker()
        _askers.append(_Asker())
    return _askers[-1]


_askers: list[_Asker] = []


def read_answers(folder: Path) -> Answers:
    """The answers in a folder."""
    number = len(list(folder.glob("logits_*.npy")))
    long = folder / "long.npy"
    return Answers(
        long=np.load(long) if long.exists() else np.zeros((0, 1), np.float32),
        logits=[np.load(folder / f"logits_{index}.npy") for index in range(number)],
        **{name: np.load(folder / f"{name}.npy") for name in ("padded", "greedy", "gaps", "cache_kl", "losses")},
        text=json.loads((folder / "text.json").read_text(encoding="utf-8")),
    )


def _reason(status: int, told: Path) -> str:
    """What a process said of its end, or the signal that ended it."""
    if told.exists():
        return " ".join(told.read_text(encoding="utf-8").split())[:_LONGEST_REASON]
    memory = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
    return f"its process was ended by signal {-status}{memory}" if status < 0 else f"its process ended with {status}"
