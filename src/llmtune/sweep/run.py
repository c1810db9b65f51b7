"""A sweep: its jobs one after another, each a process of its own, and a summary."""

from collections.abc import Sequence

from llmtune.logs import fail, print_table, say
from llmtune.signals import terminable
from llmtune.sweep.job import JobOutcome, SweepJob, SweepSettings
from llmtune.sweep.parent import SweepRecord
from llmtune.sweep.process import run_job
from llmtune.sweep.summary import COLUMNS, summarise, table_rows


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
    try:
        with terminable():
            interrupted = _run_jobs(jobs, settings, record.run_id, outcomes)
    except (KeyboardInterrupt, SystemExit):
        interrupted = True
    except BaseException as error:
        record.close("FAILED", f"{type(error).__name__}: {error}")
        raise
    outcomes += [JobOutcome(job=job, status=None) for job in jobs[len(outcomes) :]]
    return _finish(record, outcomes, interrupted=interrupted)


def _run_jobs(
    jobs: Sequence[SweepJob], settings: SweepSettings, parent_run_id: str | None, outcomes: list[JobOutcome]
) -> bool:
    """Run the jobs and add what becomes of each to `outcomes`; whether the sweep was interrupted meanwhile."""
    for number, job in enumerate(jobs, 1):
        say(f"job {number} of {len(jobs)}: {job.name} ({job.folder.path})")
        outcome, interrupted = run_job(job, settings, parent_run_id)
        outcomes.append(outcome)
        _say_outcome(outcome)
        if interrupted:
            return True
    return False


def _finish(record: SweepRecord, outcomes: Sequence[JobOutcome], *, interrupted: bool) -> int:
    failed = [outcome for outcome in outcomes if outcome.status != "FINISHED"]
    entries = summarise(outcomes)
    record.write_summary(entries)
    if interrupted:
        record.close("KILLED", "interrupted")
    elif failed:
        record.close("FAILED", f"{len(failed)} of {len(outcomes)} jobs did not finish")
    else:
        record.close("FINISHED")
    print_table("sweep", COLUMNS, table_rows(entries))
    for outcome in failed:
        if outcome.status is not None:
            fail(f"{outcome.job.name} {outcome.status}: {outcome.error} (log: {outcome.job.folder.log_file})")
    say(f"summary: {record.summary_file}")
    record.say_links([outcome.mlflow_run_id for outcome in outcomes if outcome.mlflow_run_id])
    if interrupted:
        raise KeyboardInterrupt
    return 1 if failed else 0


def _say_outcome(outcome: JobOutcome) -> None:
    reason = f": {outcome.error}" if outcome.error else ""
    say(f"job {outcome.job.name}: {outcome.status}{reason}, {outcome.seconds:.0f} s")
