"""The stages of a run in their order, those that are finished left out; and a truthful end of the record."""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtune import distributed, process_group
from llmtune.config.paths import cache_folder
from llmtune.config.run import RunConfig
from llmtune.errors import LlmtuneError
from llmtune.logs import logger, say, silence_libraries, start_logging
from llmtune.runs.environment import describe_environment, usable_cores
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest, is_finished_export
from llmtune.runs.status import RunStatusFile, at_work
from llmtune.signals import finishing, terminable, unbroken, what_ended

if TYPE_CHECKING:
    from llmtune.stages.context import RunContext
    from llmtune.tracking.tracker import RunStatus, Tracker

_NEEDS = {"prepare": (), "train": ("prepare",), "evaluate": ("train",), "export": ("train",)}
_ALONE = ("export",)
"""Stages that are the first process's alone; the others are done before them."""
_ONEDNN_KEEPS = "512"
"""Products that oneDNN keeps ready on a CPU, by shape: several steps' worth. Each packed row brings new shapes, and its
own 1,024, once full, are searched for the oldest each time: a step of SmolLM2-135M then takes a fifth longer."""


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
        RunError: another process is at work on the run; nothing is recorded.
    """
    silence_libraries()
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder(config.cache_dir) / "matplotlib"))  # its list of fonts
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _ONEDNN_KEEPS)  # it reads this at the first product
    first = distributed.is_first()
    with terminable(), at_work(folder) if first else nullcontext():
        start_logging(folder.log_file if first else None, quiet=not first)
        with _recorded(folder, stages) as record:
            _run_stages(record.open(config), stages)
    return 0


def _run_stages(context: "RunContext", stages: Sequence[str]) -> None:
    from llmtune.stages.export import check as check_export
    from llmtune.stages.memory_advice import memory_explained
    from llmtune.stages.recipes import RECIPES
    from llmtune.stages.results import show_results

    config, manifest = context.config, context.manifest
    _set_up_torch(config, manifest)
    left = stages_to_run(stages, manifest, trained_elsewhere=config.is_trained_elsewhere)
    if "export" in left and distributed.is_first():
        check_export(context)  # before training, not after it
    with _collecting_what_comes_new():
        for stage in left:
            if stage in _ALONE:
                process_group.leave()
            with memory_explained(stage, context):
                RECIPES[stage](context)
    process_group.leave()
    show_results(context)


def stages_to_run(asked: Sequence[str], manifest: Manifest, *, trained_elsewhere: bool) -> list[str]:
    """The stages that are left to do, in order, with the unfinished ones that they need."""
    wanted: list[str] = []

    def want(stage: str) -> None:
        if trained_elsewhere and stage == "train":
            want("prepare")
            return
        for needed in _NEEDS[stage]:
            want(needed)
        if stage in wanted:
            return
        if _stands(stage, manifest):
            say(f"{stage}: finished earlier")
            return
        wanted.append(stage)

    for stage in _NEEDS:
        if stage in asked:
            want(stage)
    return wanted


def _stands(stage: str, manifest: Manifest) -> bool:
    """Whether a stage is finished and what it made is there; an export may have been removed or moved since."""
    results = manifest.stage(stage)
    return bool(results) and (stage != "export" or all(is_finished_export(result) for result in results.values()))


@contextmanager
def _collecting_what_comes_new() -> Iterator[None]:
    """Leave what stands before, such as modules, out of each search for garbage: half a second after every stage."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _set_up_torch(config: RunConfig, manifest: Manifest) -> None:
    """Join the run's process group where it has several processes, and share the cores among them."""
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
    import torch

    on_cpu = config.hardware.kind == "cpu" or not torch.cuda.is_available()
    process_group.join(on_cpu=on_cpu, peer_timeout_seconds=config.hardware.peer_timeout_seconds)
    torch.set_num_threads(_num_threads(config, manifest))
    torch.use_deterministic_algorithms(config.train.deterministic)


def _num_threads(config: RunConfig, manifest: Manifest) -> int:
    """CPU threads: as the run began, since sums depend on them; else as typed, or this process's share of the cores."""
    begun, processes = manifest.section("choices"), distributed.num_processes()
    if begun.get("num_processes") != processes:
        return config.hardware.num_threads or max(1, usable_cores() // processes)
    threads, cores = begun["num_threads"], usable_cores()
    if threads * processes > cores and distributed.is_first():
        say(f"num_threads: the run began with {threads}, and there are {cores} cores: the same numbers, but slower")
    return threads


@dataclass
class _Record:
    """What is recorded of a run: its status from the start on, the rest once `open` has been called."""

    folder: RunFolder
    manifest: Manifest
    tracker: "Tracker | None" = None

    def open(self, config: RunConfig) -> "RunContext":
        """Open the tracker, which a signal doesn't leave half done, and return what the stages work with."""
        from llmtune.stages.context import RunContext
        from llmtune.stages.record import open_tracker

        with unbroken():
            tracker = self.tracker = open_tracker(self.folder, config)
        if distributed.is_first():
            self.manifest.record("environment", describe_environment())
        return RunContext(config=config, folder=self.folder, manifest=self.manifest, tracker=tracker)

    def close(self, state: "RunStatus", error: str | None = None) -> None:
        """Record the end; only a second signal leaves that half done."""
        if not distributed.is_first():
            return
        with finishing():
            RunStatusFile(self.folder.status_file).end(state, error)
            if self.tracker is not None:
                self.tracker.close(state)


@contextmanager
def _recorded(folder: RunFolder, stages: Sequence[str]) -> Iterator[_Record]:
    """Begin the run's record, and close it as finished, failed or killed, whichever is true."""
    record = _Record(folder, Manifest(folder.manifest_file))
    try:
        if distributed.is_first():
            RunStatusFile(folder.status_file).start_anew()
        yield record
    except BaseException as error:
        cause = process_group.tell_end(error, by_signal=what_ended(error) is not None)
        killed_by = what_ended(cause)
        record.close("KILLED" if killed_by else "FAILED", killed_by or _reason(cause))
        if killed_by:
            _say_how_to_go_on(record, stages)
        raise
    record.close("FINISHED")


def _say_how_to_go_on(record: _Record, stages: Sequence[str]) -> None:
    """Say where a run that a signal ended stands, and what to type to have its other stages."""
    folder, left = record.folder, [stage for stage in stages if not record.manifest.stage(stage)]
    if not left:
        return
    saved = ""
    if record.tracker is not None and "train" in left:  # else torch may be half imported
        from llmtune.training.checkpoint import checkpoint_step, list_checkpoints

        checkpoints = list_checkpoints(folder.checkpoints)
        saved = f", saved at step {checkpoint_step(checkpoints[-1])}" if checkpoints else ""
    say(f"stopped{saved}; to go on: python -m llmtune {' '.join(left)} run={folder.path}")


def _reason(error: BaseException) -> str:
    """Why the run failed, in words; also written to the run's log."""
    reason = str(error) if isinstance(error, LlmtuneError) else f"{type(error).__name__}: {error}"
    logger.error(reason)
    return reason
