"""Trains the tiny model in processes that are killed, and writes what became of each. Started by a test.

Arguments: model folder, folder for the runs, number of kills, seed, tokens of a step or 0 for steps of examples. A
process of its own, since children that are forked after torch has computed with several threads hang.
"""

import json
import mmap
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny_training import LORA_DROPOUT, Setup, make_parts, train_to_the_end

from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.training import checkpoint
from llmtune.training.callbacks import checkpointing
from llmtune.training.checkpoint import find_damage, list_checkpoints, load_checkpoint, newest_intact_checkpoint
from llmtune.training.parts import TrainState

TOKENS_PER_STEP = int(sys.argv[5]) or None
SETUP = Setup(LORA_DROPOUT, num_examples=17 if TOKENS_PER_STEP else 18, tokens_per_step=TOKENS_PER_STEP)
_KEEP = 1
_CHANGES = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "shutil.rmtree"})
_STARTED, _IN_SAVE, _SAVED, _CHANGED = range(4)


class Board:
    """Four numbers that parent and child share, and that outlive the child: what it was doing when it was killed."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 4 * 4)

    def __getitem__(self, place: int) -> int:
        return int.from_bytes(self._shared[4 * place : 4 * place + 4], "little")

    def __setitem__(self, place: int, value: int) -> None:
        self._shared[4 * place : 4 * place + 4] = value.to_bytes(4, "little")


def main(model_folder: Path, folder: Path, num_kills: int, seed: int) -> None:
    """Kill half of the runs after a random time, and half before a random change of files inside a save."""
    draw = random.Random(seed)
    board = Board()
    started = time.perf_counter()
    _wait(_fork(lambda: _train(model_folder, folder / "straight", board, die_at=None)))
    seconds, num_changes = time.perf_counter() - started, board[_CHANGED]
    trials = []
    for number in range(num_kills):
        run = folder / f"run-{number}"
        if number % 2:
            killed = _kill_at_change(model_folder, run, draw.randrange(1, num_changes))
        else:
            killed = _kill_after(model_folder, run, draw.uniform(0.0, seconds))
        trials.append({**killed, **_look_at(run)})
        _wait(_fork(lambda run=run: _train(model_folder, run, Board(), die_at=None)))
        trials[-1]["end"] = _end_of(run)
    result = {"straight": _end_of(folder / "straight"), "changes": num_changes, "trials": trials}
    (folder / "result.json").write_text(json.dumps(result))


def _kill_after(model_folder: Path, run: Path, seconds: float) -> dict[str, Any]:
    """Kill a run that many seconds after its training began, wherever it is."""
    board = Board()
    child = _fork(lambda: _train(model_folder, run, board, die_at=None))
    while not board[_STARTED]:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return {"how": f"after {seconds:.3f} s", "in_save": bool(board[_IN_SAVE]), "saved": board[_SAVED]}


def _kill_at_change(model_folder: Path, run: Path, change: int) -> dict[str, Any]:
    """A run that kills itself before the given change of files inside its saves."""
    board = Board()
    child = _fork(lambda: _train(model_folder, run, board, die_at=change))
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    return {"how": f"before change {change}", "in_save": bool(board[_IN_SAVE]), "saved": board[_SAVED]}


def _look_at(run: Path) -> dict[str, Any]:
    """What a killed run left: whole checkpoints, and damaged ones under a checkpoint's name."""
    checkpoints = list_checkpoints(RunFolder(run).checkpoints)
    damaged = [folder.name for folder in checkpoints if find_damage(folder)]
    return {"whole": len(checkpoints) - len(damaged), "damaged": damaged}


def _train(model_folder: Path, run: Path, board: Board, die_at: int | None) -> None:
    """Train from the newest whole checkpoint, or from the start, to the end."""
    torch.set_num_threads(1)
    parts = make_parts(model_folder, SETUP)
    newest = newest_intact_checkpoint(RunFolder(run).checkpoints)
    state = TrainState() if newest is None else load_checkpoint(newest, parts)
    thread = threading.local()
    _watch_changes(board, thread, die_at)

    def watched(method: Callable[..., None]) -> Callable[..., None]:
        def save(self: Any, *arguments: Any, **named: Any) -> None:
            board[_IN_SAVE], thread.saves = 1, True
            method(self, *arguments, **named)
            board[_IN_SAVE], thread.saves = 0, False

        return save

    def counted(*arguments: Any) -> None:
        checkpoint.save_checkpoint(*arguments)
        board[_SAVED] += 1

    board[_STARTED] = 1
    callback = checkpointing.CheckpointCallback
    with (
        patch.object(callback, "_write", watched(callback._write)),
        patch.object(callback, "_link_final", watched(callback._link_final)),
        patch.object(checkpointing, "save_checkpoint", counted),
    ):
        outcome = train_to_the_end(parts, state, run, keep=_KEEP)
    (run / "outcome.json").write_text(json.dumps(asdict(outcome)))


def _watch_changes(board: Board, thread: threading.local, die_at: int | None) -> None:
    """Count the changes of files by the thread that saves, and die before one of them."""

    def hook(event: str, _: Any) -> None:
        if event in _CHANGES and getattr(thread, "saves", False):
            board[_CHANGED] += 1
            if board[_CHANGED] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _end_of(run: Path) -> dict[str, Any]:
    """What a finished run came to: weights, state, and each step's loss in the order of the file."""
    outcome = json.loads((run / "outcome.json").read_text())
    losses = MetricsLog(RunFolder(run).metrics_file).losses("train/loss")
    names = sorted(path.name for path in RunFolder(run).checkpoints.iterdir())
    return {"weights": outcome["weights"], "state": outcome["state"], "losses": losses, "checkpoints": names}


def _fork(work: Callable[[], None]) -> int:
    """Start a child that does `work`; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def _wait(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert status == 0, "a run that should end well did not"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
