"""`python -m llmtune.launcher FOLDER ...`: accelerate's launch of a run's workers, and the truth about their end.

What follows the folder are the arguments of `accelerate launch`. Workers that end with a message of their own leave it
in the file that the launcher names to each; one of them is shown, in place of the launcher's own account.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from llmtune.config.saved import load_config
from llmtune.runs.layout import RunFolder
from llmtune.runs.status import RunState, RunStatusFile
from llmtune.signals import ENDED_BY, end_after
from llmtune.tracking.dead_runs import end_run
from llmtune.tracking.store import resolve_tracking_uri


def main() -> int:
    """Start the workers, wait for them, and return the exit status of the one that failed first."""
    folder = RunFolder(Path(sys.argv[1]))
    # Once the command that started it is gone, this process ends, and so do the workers.
    threading.Thread(target=end_after, args=(os.getppid(),), name="command", daemon=True).start()
    logging.disable(logging.ERROR)  # the launcher's account of what failed, which is shown and recorded here instead
    try:
        launch_command(launch_command_parser().parse_args(sys.argv[2:]))
    except SignalException as stop:
        _record(folder, "KILLED", ENDED_BY.get(128 + stop.sigval, signal.Signals(stop.sigval).name))
        return 128 + stop.sigval
    except ChildFailedError as error:
        end = worker_end(first_failure(error.failures))
        if end.message is not None:
            print(f"llmtune: {end.message}", file=sys.stderr)
        _record(folder, *end.recorded)
        return end.exit_status
    return 0


@dataclass(frozen=True)
class WorkerEnd:
    """How a worker failed."""

    exit_status: int
    """As a shell gives it: 128 and more is a signal."""
    message: str | None
    """What it left to be shown, or that it was killed; None where it ended with a traceback, or without a word."""
    follows: bool = False
    """Whether it ended because another did."""

    @property
    def is_by_signal(self) -> bool:
        """Whether it ended as a signal asked."""
        return self.message is None and self.exit_status in ENDED_BY

    @property
    def recorded(self) -> tuple[RunState, str]:
        """What the run's record says of it, where it is what ended the run."""
        if self.is_by_signal:
            return "KILLED", ENDED_BY[self.exit_status]
        return "FAILED", self.message or f"a process of the run ended with exit status {self.exit_status}"


def worker_end(failure: ProcessFailure) -> WorkerEnd:
    """What a failure amounts to; a worker that left a message counts by that, even if it was told to stop meanwhile."""
    left = failure.error_file_data
    if isinstance(left, dict) and "exit_status" in left:
        return WorkerEnd(left["exit_status"], left["message"], left["follows"])
    if failure.exitcode == -signal.SIGKILL:
        killed = f"process {failure.local_rank} (number {failure.pid}) was killed"
        cure = "as where memory runs out: lower train.micro_batch_size"
        return WorkerEnd(128 + signal.SIGKILL, f"{killed}, {cure}", follows=True)
    return WorkerEnd(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode, None)


def first_failure(failures: Mapping[int, ProcessFailure]) -> ProcessFailure:
    """The failure that the others follow from: one with a message of its own, else one that tells of another's.

    Of those without a message it is the earliest that wasn't told to stop. A process that hangs is killed in the end,
    for which what the others say of it counts.

    Args:
        failures: rank to failure.
    """

    def order(failure: ProcessFailure) -> tuple[bool, bool, bool, bool, int, int]:
        end, left = worker_end(failure), isinstance(failure.error_file_data, dict)
        return end.message is None, end.follows, not left, end.is_by_signal, failure.timestamp, failure.local_rank

    return min(failures.values(), key=order)


def _record(folder: RunFolder, status: RunState, error: str) -> None:
    """Correct the record: the first process may have been stopped for another's failure, or before it could write."""
    record = RunStatusFile(folder.status_file).read()
    if record is None or record.status in (status, *(("FINISHED",) if status == "KILLED" else ())):
        return
    tracking = load_config(folder.config_file).tracking
    uri = resolve_tracking_uri(tracking.uri, Path.cwd()) if tracking.backend == "mlflow" else None
    end_run(folder, status, error, uri)


if __name__ == "__main__":
    sys.exit(main())
