"""A sweep: its jobs, each a process of its own, a summary, and a comparison."""

from collections.abc import Sequence

from llmtune.comparison.files import ComparisonFiles
from llmtune.comparison.markdown import description
from llmtune.comparison.outcome import Comparison
from llmtune.comparison.tables import show_comparison
from llmtune.logs import fail, logger, print_table, say
from llmtune.runs.status import at_work
from llmtune.signals import terminable, unbroken
from llmtune.sweep.comparing import compare_jobs
from llmtune.sweep.job import JobOutcome, SweepJob, SweepSettings
from llmtune.sweep.parent import SweepRecord
from llmtune.sweep.schedule import Schedule
from llmtune.sweep.summary import COLUMNS, summarise, table_rows


def run_sweep(jobs: Sequence[SweepJob], settings: SweepSettings, outcomes: Sequence[JobOutcome] = ()) -> int:
    """Run every job, whatever becomes of the others, and say what came out.

    Args:
        jobs: the jobs, in order.
        settings: how they are run and recorded.
        outcomes: what became of jobs that aren't to be run.

    Returns:
        The exit status: 0 if every job finished, else 1.

    Raises:
        KeyboardInterrupt: the sweep was interrupted; the jobs that ran were stopped, all is recorded.
        RunError: another process is at work on the sweep.
    """
    with terminable(), at_work(settings.folder):
        with unbroken():
            record = SweepRecord(settings, jobs)
        try:
            schedule = Schedule(jobs, outcomes, settings, record.run_id)
            interrupted = schedule.run()
        except BaseException as error:
            record.close("FAILED", f"{type(error).__name__}: {error}")
            raise
        with unbroken():
            return _finish(record, schedule.outcomes, settings, interrupted=interrupted)


def _finish(record: SweepRecord, outcomes: Sequence[JobOutcome], settings: SweepSettings, *, interrupted: bool) -> int:
    failed = [outcome for outcome in outcomes if outcome.status != "FINISHED"]
    entries = summarise(outcomes)
    record.write_summary(entries)
    compared = None if interrupted else _compared(record, outcomes, settings)
    if interrupted:
        record.close("KILLED", "interrupted")
    elif failed:
        record.close("FAILED", f"{len(failed)} of {len(outcomes)} jobs did not finish")
    else:
        record.close("FINISHED")
    print_table("sweep", COLUMNS, table_rows(entries))
    if compared is not None:
        show_comparison(compared[0])
        if compared[1] is not None:
            say(f"the comparison: {compared[1].page}")
        say(f"again at any time: python -m llmtune compare run={record.folder.path}")
    for outcome in failed:
        if outcome.status is not None:
            fail(f"{outcome.job.name} {outcome.status}: {outcome.error} (log: {outcome.job.folder.log_file})")
    say(f"summary: {record.summary_file}")
    record.say_links([outcome.mlflow_run_id for outcome in outcomes if outcome.mlflow_run_id])
    if failed:
        say(f"to finish it: python -m llmtune -m run={record.folder.path}{_more_time(failed, settings)}")
    if interrupted:
        raise KeyboardInterrupt
    return 1 if failed else 0


def _more_time(failed: Sequence[JobOutcome], settings: SweepSettings) -> str:
    """What to type beside it where a job met its limit: twice that; it goes on from its last checkpoint."""
    limit = settings.job_timeout_seconds
    if limit is None or not any(outcome.timed_out for outcome in failed):
        return ""
    return f" sweep.job_timeout_minutes={2 * limit / 60:g}"


def _compared(
    record: SweepRecord, outcomes: Sequence[JobOutcome], settings: SweepSettings
) -> tuple[Comparison, ComparisonFiles | None] | None:
    """The comparison, recorded; None where there is nothing to compare, or it can't be made: the runs stand anyway."""
    try:
        compared = compare_jobs(outcomes, settings)
    except Exception as error:
        logger.exception("the comparison can't be made")
        fail(
            f"the comparison can't be made ({type(error).__name__}: {error}); the runs are whole. Try: "
            f"python -m llmtune compare run={settings.folder.path}"
        )
        return None
    if compared is not None:
        record.set_description(description(compared[0]))
        for file in compared[1].all if compared[1] is not None else ():
            record.log_artifact(file)
    return compared
