"""A sweep: its jobs one after another, each a process of its own, and a summary."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from llmtune.logs import fail, print_table, say
from llmtune.sweep.job import JobOutcome, SweepJob, SweepSettings
from llmtune.sweep.parent import SweepRecord
from llmtune.sweep.process import run_job
from llmtune.sweep.summary import COLUMNS, summarise, table_rows

_TERMINATED = 128 + signal.SIGTERM


def run_sweep(jobs: Sequence[SweepJob], settings: SweepSettings) -> int:
    """Run every job, whatever becomes of the others, and say what came out.

    Args:
        jobs: the jobs, in order.
        settings: how they are run and recorded.

    Returns:
        The exit status: 0 if every job finished, else 1.

    Raises:
        KeyboardInterrupt: the sweep was interrupted; the job that ran was stopped, all is recorded.
    """
    record = SweepRecord(settings, jobs)
    outcomes: list[JobOutcome] = []
    interrupted = False
    try:
        with _terminable():
            for number, job in enumerate(jobs, 1):
                say(f"job {number} of {len(jobs)}: {job.name} ({job.folder.path})")
                outcome, interrupted = run_job(job, settings, record.run_id)
                outcomes.append(outcome)
                _say_outcome(outcome)
                if interrupted:
                    break
    except (KeyboardInterrupt, SystemExit):
        interrupted = True
    except BaseException as error:
        record.close("FAILED", f"{type(error).__name__}: {error}")
        raise
    outcomes += [JobOutcome(job=job, status=None) for job in jobs[len(outcomes) :]]
    return _finish(record, outcomes, interrupted=interrupted)


def _finish(record: SweepRecord, outcomes: Sequence[JobOutcome], *, interrupted: bool) -> int:
    failed = [outcome for outcome in outcomes if outcome.status != "FINISHED"]
    entries = summarise(outcomes)
    print_table("sweep", COLUMNS, table_rows(entries))
    for outcome in failed:
        if outcome.status is not None:
            fail(f"{outcome.job.name} {outcome.status}: {outcome.error} (log: {outcome.job.folder.log_file})")
    record.write_summary(entries)
    if interrupted:
        record.close("KILLED", "interrupted")
    elif failed:
        record.close("FAILED", f"{len(failed)} of {len(outcomes)} jobs did not finish")
    else:
        record.close("FINISHED")
    say(f"summary: {record.summary_file}")
    record.say_links([outcome.mlflow_run_id for outcome in outcomes if outcome.mlflow_run_id])
    if interrupted:
        raise KeyboardInterrupt
    return 1 if failed else 0


def _say_outcome(outcome: JobOutcome) -> None:
    reason = f": {outcome.error}" if outcome.error else ""
    say(f"job {outcome.job.name}: {outcome.status}{reason}, {outcome.seconds:.0f} s")


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the sweep as Ctrl-C does, so that its job isn't left running (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
