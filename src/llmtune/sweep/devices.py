"""Which GPUs there are, and on which of them, or on what share of the CPU, a job runs."""

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.config.hardware import HardwareConfig
from llmtune.runs.environment import CORES_VARIABLE, JOBS_AT_ONCE_VARIABLE, usable_cores

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that jobs may use, each as CUDA_VISIBLE_DEVICES names it; CUDA isn't started to count them."""
    if not _torch_is_for_gpus():
        return ()
    import torch

    count = torch.cuda.device_count()
    chosen = os.environ.get(_VISIBLE)
    names = [name.strip() for name in chosen.split(",")] if chosen is not None else [str(n) for n in range(count)]
    return tuple(names[:count])


def _torch_is_for_gpus() -> bool:
    """Whether the installed torch can compute on GPUs: a small file of it says so, which spares seconds of import."""
    spec = importlib.util.find_spec("torch")
    places = spec.submodule_search_locations if spec is not None else None
    file = Path(next(iter(places))) / "version.py" if places else None
    if file is None or not file.is_file():
        return spec is not None
    build = importlib.util.spec_from_file_location("torch_version", file)
    assert build is not None and build.loader is not None
    module = importlib.util.module_from_spec(build)
    build.loader.exec_module(module)
    return any(getattr(module, name, None) is not None for name in ("cuda", "hip"))


@dataclass(frozen=True)
class Slot:
    """A place to run a job."""

    gpus: tuple[str, ...] = ()
    """The GPUs that the job sees; none for one on the CPU."""
    num_cores: int | None = None
    """CPU cores that the job may use; None for all."""
    num_sharing: int = 1
    """Jobs that may compute at once on the same GPU, or where there is none on the CPU, with this one."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What tells the job so."""
        devices = {_VISIBLE: ",".join(self.gpus)} if self.gpus else {}
        cores = {CORES_VARIABLE: str(self.num_cores)} if self.num_cores is not None else {}
        return devices | cores | ({JOBS_AT_ONCE_VARIABLE: str(self.num_sharing)} if self.num_sharing > 1 else {})

    @property
    def description(self) -> str:
        """Where that is, in a few words."""
        if not self.gpus:
            return "the CPU"
        return f"GPU {self.gpus[0]}" if len(self.gpus) == 1 else f"GPUs {', '.join(self.gpus)}"


class Slots:
    """Gives jobs places to run, as many at once as there is room for.

    Args:
        gpus: the GPUs that jobs may use.
        num_parallel: jobs at once; None is one a GPU, and one on the CPU.
        num_jobs: jobs of the sweep; a single one needs no room beside it.
    """

    def __init__(self, gpus: Sequence[str], num_parallel: int | None, num_jobs: int) -> None:
        self._load = dict.fromkeys(gpus, 0)
        self._num_on_cpu = self._num_running = 0
        num_parallel = 1 if num_jobs == 1 else num_parallel
        self._on_cpu_at_once = num_parallel or 1
        self._gpus_a_job = max(1, len(gpus) // (num_parallel or max(1, len(gpus))))
        self._jobs_a_gpu = math.ceil(num_parallel / len(gpus)) if num_parallel and gpus else 1
        self.num_at_once = min(num_parallel or max(1, len(gpus)), num_jobs)
        """Jobs that can run at once."""

    def take(self, hardware: HardwareConfig) -> Slot | None:
        """A place for a job with this hardware; None while there is no room for it."""
        wanted = self._num_wanted(hardware)
        if self._num_running >= self.num_at_once:
            return None
        if wanted == 0 and self._num_on_cpu >= self._on_cpu_at_once:
            return None
        free = sorted((load, number) for number, load in enumerate(self._load.values()) if load < self._jobs_a_gpu)
        if len(free) < wanted:
            return None
        names = list(self._load)
        gpus = tuple(names[number] for number in sorted(number for _, number in free[:wanted]))
        slot = Slot(gpus, self._num_cores, min(self._jobs_a_gpu if gpus else self._on_cpu_at_once, self.num_at_once))
        self._count(slot, 1)
        return slot

    def give_back(self, slot: Slot) -> None:
        """Take back the place of a job that has ended."""
        self._count(slot, -1)

    @property
    def _num_cores(self) -> int | None:
        return max(1, usable_cores() // self.num_at_once) if self.num_at_once > 1 else None

    def _count(self, slot: Slot, change: int) -> None:
        self._num_running += change
        self._num_on_cpu += change if not slot.gpus else 0
        for gpu in slot.gpus:
            self._load[gpu] += change

    def _num_wanted(self, hardware: HardwareConfig) -> int:
        """GPUs for a job; of `auto` without a number its share of them."""
        count = len(self._load)
        if hardware.kind == "cpu":
            return 0
        if hardware.kind == "single_gpu":
            return min(1, count)
        share = count if hardware.kind == "ddp" else self._gpus_a_job
        return min(hardware.num_processes or share, count)
