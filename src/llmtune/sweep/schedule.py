"""A sweep's jobs, as many at once as there is room for, whatever becomes of each."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from llmtune.logs import say
from llmtune.signals import asked_to_stop, finishing, unbroken
from llmtune.sweep.devices import Slot, Slots, visible_gpus
from llmtune.sweep.job import JobOutcome, SweepJob, SweepSettings
from llmtune.sweep.process import RunningJob, job_environment, not_started

_SECONDS_BETWEEN_LOOKS = 0.1
_ECHO_SECONDS = 0.5


class Schedule:
    """Runs the jobs of a sweep that are left to do.

    Args:
        jobs: all jobs of the sweep, in order.
        outcomes: what became of those that aren't to be run.
        settings: how they are run.
        parent_run_id: the sweep's MLflow run.
    """

    def __init__(
        self,
        jobs: Sequence[SweepJob],
        outcomes: Sequence[JobOutcome],
        settings: SweepSettings,
        parent_run_id: str | None,
    ) -> None:
        self._jobs = list(jobs)
        self._settings = settings
        self._parent_run_id = parent_run_id
        self._outcomes = {_key(outcome.job): outcome for outcome in outcomes}
        self._waiting = deque(job for job in jobs if _key(job) not in self._outcomes)
        self._running: list[tuple[RunningJob, Slot]] = []
        computes = any(job.hardware.kind != "cpu" for job in self._waiting)
        self._gpus = visible_gpus() if computes else ()
        self._slots = Slots(self._gpus, settings.num_parallel, len(jobs))

    @property
    def outcomes(self) -> list[JobOutcome]:
        """What became of each job, in their order; a job that was never started has no status."""
        return [self._outcomes.get(_key(job), JobOutcome(job=job, status=None)) for job in self._jobs]

    def run(self) -> bool:
        """Run the jobs that are left, and return whether a person or the system interrupted the sweep meanwhile."""
        if self._is_side_by_side and self._waiting:
            say(f"up to {self._slots.num_at_once} jobs at once on {Slot(self._gpus).description}")
        try:
            while self._waiting or self._running:
                with unbroken():
                    self._start_what_fits()
                    self._collect()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        except (KeyboardInterrupt, SystemExit):
            self._stop()
            return True
        except BaseException:
            self._stop()
            raise
        return False

    @property
    def _is_side_by_side(self) -> bool:
        return self._slots.num_at_once > 1

    def _start_what_fits(self) -> None:
        while self._waiting:
            slot = self._slots.take(self._waiting[0].hardware)
            if slot is None:
                return
            self._start(self._waiting.popleft(), slot)

    def _start(self, job: SweepJob, slot: Slot) -> None:
        output = job.folder.output_file if self._is_side_by_side else None
        shown, place = (output, f" on {slot.description}") if output is not None else (job.folder.path, "")
        say(f"job {self._jobs.index(job) + 1} of {len(self._jobs)}{place}: {job.name} ({shown})")
        environment = {**job_environment(job, self._settings, self._parent_run_id), **slot.environment}
        try:
            self._running.append((RunningJob(job, self._settings, environment, output), slot))
        except OSError as error:
            self._slots.give_back(slot)
            self._keep(not_started(job, error))

    def _collect(self) -> None:
        """Take in the jobs that have ended; each frees its place."""
        for entry in list(self._running):
            running, slot = entry
            outcome = running.poll()
            if outcome is not None:
                self._running.remove(entry)
                self._slots.give_back(slot)
                self._keep(outcome)

    def _keep(self, outcome: JobOutcome) -> None:
        self._outcomes[_key(outcome.job)] = outcome
        reason = f": {outcome.error}" if outcome.error else ""
        say(f"job {outcome.job.name}: {outcome.status}{reason}, {outcome.seconds:.0f} s")

    def _stop(self) -> None:
        """End all jobs that run, in order; whoever interrupts once more has them killed.

        What comes within a moment is an interrupt's echo: a job scheduler signals every process.
        """
        for running, _ in self._running:
            running.interrupt()
        began = time.monotonic()
        self._collect_until(lambda: time.monotonic() - began > _ECHO_SECONDS)
        if self._collect_until(lambda: asked_to_stop() is not None):
            for running, _ in self._running:
                running.hurry()
            self._collect_until(lambda: False)

    def _collect_until(self, is_enough: Callable[[], bool]) -> bool:
        """Take in what ends until no job runs; whether it was enough before."""
        with finishing():
            while self._running:
                if is_enough():
                    return True
                self._collect()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        return False


def _key(job: SweepJob) -> str:
    return str(job.folder.path)
