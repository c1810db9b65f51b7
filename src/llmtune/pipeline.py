"""The stages of a run in their order, those that are finished left out; and a truthful end of the record."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from llmtune import distributed
from llmtune.config.run import RunConfig
from llmtune.errors import LlmtuneError
from llmtune.logs import say, silence_libraries, start_logging
from llmtune.runs.environment import describe_environment
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.runs.status import RunState, RunStatusFile

_NEEDS = {"prepare": (), "train": ("prepare",), "evaluate": ("train",), "export": ("train",)}
_TERMINATED = 128 + signal.SIGTERM


def run_stages(folder: RunFolder, config: RunConfig, stages: Sequence[str]) -> int:
    """Run the stages, and the unfinished ones that they need, in this process.

    Args:
        folder: the run's folder.
        config: its config.
        stages: names of stages.

    Returns:
        The exit status.

    Raises:
        LlmtuneError: a stage failed for a reason that its message names; the record says FAILED.
    """
    silence_libraries()
    start_logging(folder.log_file, quiet=not distributed.is_first())
    from llmtune.stages.context import RunContext
    from llmtune.stages.recipes import RECIPES
    from llmtune.stages.results import show_results

    manifest = Manifest(folder.manifest_file)
    with _processes(config), _recorded(folder, config, manifest) as context:
        assert isinstance(context, RunContext)
        for stage in stages_to_run(stages, manifest, trained_elsewhere=config.source_run is not None):
            RECIPES[stage](context)
        show_results(context)
    return 0


def stages_to_run(asked: Sequence[str], manifest: Manifest, *, trained_elsewhere: bool) -> list[str]:
    """The stages that are left to do, in order, with the unfinished ones that they need."""
    wanted: list[str] = []

    def want(stage: str) -> None:
        if trained_elsewhere and stage in ("prepare", "train"):
            return
        for needed in _NEEDS[stage]:
            want(needed)
        if stage in wanted:
            return
        if manifest.stage(stage):
            say(f"{stage}: finished earlier")
            return
        wanted.append(stage)

    for stage in _NEEDS:
        if stage in asked:
            want(stage)
    return wanted


@contextmanager
def _processes(config: RunConfig) -> Iterator[None]:
    """Join the run's process group where it has several processes, and share the cores among them."""
    import torch
    from accelerate import PartialState

    cores = describe_environment()["num_cores"]
    torch.set_num_threads(config.hardware.num_threads or max(1, cores // distributed.num_processes()))
    torch.use_deterministic_algorithms(config.train.deterministic)
    state = PartialState(cpu=config.hardware.kind == "cpu" or not torch.cuda.is_available())
    yield
    state.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def _recorded(folder: RunFolder, config: RunConfig, manifest: Manifest) -> Iterator[object]:
    """Open the run's record, and close it as finished, failed or killed, whichever is true."""
    from llmtune.stages.context import RunContext
    from llmtune.stages.record import open_tracker
    from llmtune.tracking.mlflow import PARENT_RUN_VARIABLE

    status = RunStatusFile(folder.status_file)
    tracker = open_tracker(folder, config, os.environ.get(PARENT_RUN_VARIABLE))
    if distributed.is_first():
        manifest.record("environment", describe_environment())

    def close(state: RunState, error: str | None = None) -> None:
        if distributed.is_first():
            status.end(state, error)
            if state != "RUNNING":
                tracker.close(state)

    with _terminable():
        try:
            yield RunContext(config=config, folder=folder, manifest=manifest, tracker=tracker)
        except (KeyboardInterrupt, SystemExit) as stop:
            close("KILLED", "interrupted" if isinstance(stop, KeyboardInterrupt) else "terminated")
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, LlmtuneError) else f"{type(error).__name__}: {error}"
            close("FAILED", reason)
            raise
        close("FINISHED")


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run as an interrupt does, with exit status 143 (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before: Callable[[int, FrameType | None], object] | int | None = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
