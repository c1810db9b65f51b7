"""Which job gets which GPUs, and how many run at once."""

import pytest
import torch

from llmtune.config.hardware import HardwareConfig
from llmtune.runs.environment import jobs_at_once, usable_cores
from llmtune.sweep import devices
from llmtune.sweep.devices import Slots, visible_gpus

pytestmark = pytest.mark.fast

AUTO, CPU, DDP = (HardwareConfig(kind=kind) for kind in ("auto", "cpu", "ddp"))
FOUR = ("0", "1", "2", "3")


def _gpus(slots: Slots, *hardware: HardwareConfig) -> list[tuple[str, ...] | None]:
    """What each job gets, one taken after another."""
    taken = [slots.take(one) for one in hardware]
    return [slot.gpus if slot is not None else None for slot in taken]


def test_a_gpu_each_and_then_no_room() -> None:
    assert _gpus(Slots(FOUR[:2], None, 9), AUTO, AUTO, AUTO) == [("0",), ("1",), None]


def test_what_is_given_back_is_given_again() -> None:
    slots = Slots(FOUR[:2], None, 9)
    first = slots.take(AUTO)
    assert first is not None and slots.take(AUTO) is not None
    slots.give_back(first)
    assert _gpus(slots, AUTO, AUTO) == [first.gpus, None]


def test_several_processes_take_several_gpus() -> None:
    two = HardwareConfig(kind="ddp", num_processes=2)
    assert _gpus(Slots(FOUR, None, 9), two, AUTO, two, AUTO) == [("0", "1"), ("2",), None, ("3",)]
    assert _gpus(Slots(FOUR, None, 9), DDP, AUTO) == [FOUR, None]
    assert _gpus(Slots(FOUR[:1], None, 9), two, AUTO) == [("0",), None]


def test_a_number_shares_the_gpus_among_the_jobs() -> None:
    assert _gpus(Slots(FOUR, 1, 9), AUTO, AUTO) == [FOUR, None]
    assert _gpus(Slots(FOUR, 2, 9), AUTO, AUTO, AUTO) == [("0", "1"), ("2", "3"), None]
    assert _gpus(Slots(FOUR[:2], 3, 9), AUTO, AUTO, AUTO, AUTO) == [("0",), ("1",), ("0",), None]
    assert _gpus(Slots(FOUR, None, 1), AUTO) == [FOUR]


def test_one_at_a_time_on_a_cpu_unless_a_number_is_set() -> None:
    assert _gpus(Slots((), None, 9), AUTO, DDP) == [(), None]
    assert _gpus(Slots(FOUR, None, 9), CPU, CPU, AUTO) == [(), None, ("0",)]
    assert _gpus(Slots((), 2, 9), CPU, AUTO, CPU) == [(), (), None]


def test_a_job_is_told_its_gpus_and_its_share_of_the_cores() -> None:
    slot = Slots(FOUR[:2], None, 9).take(AUTO)
    assert slot is not None
    assert slot.environment == {"CUDA_VISIBLE_DEVICES": "0", "LLMTUNE_NUM_CORES": str(max(1, usable_cores() // 2))}
    alone = Slots((), None, 9).take(AUTO)
    assert alone is not None and alone.environment == {}


def test_a_job_is_told_with_how_many_it_shares_its_device() -> None:
    def told(slots: Slots, *hardware: HardwareConfig) -> list[str | None]:
        slots_taken = [slots.take(one) for one in hardware]
        return [slot.environment.get("LLMTUNE_JOBS_AT_ONCE") for slot in slots_taken if slot is not None]

    assert told(Slots((), None, 9), AUTO) == [None]
    assert told(Slots((), 3, 9), AUTO, CPU, AUTO) == ["3", "3", "3"]
    assert told(Slots((), 3, 2), AUTO, AUTO) == ["2", "2"]
    assert told(Slots((), 3, 1), AUTO) == [None]
    assert told(Slots(FOUR, None, 9), AUTO, AUTO) == [None, None]
    assert told(Slots(FOUR, 2, 9), AUTO, AUTO) == [None, None]
    assert told(Slots(FOUR[:1], 2, 9), AUTO, AUTO) == ["2", "2"]
    assert told(Slots(FOUR[:2], 4, 9), AUTO, CPU) == ["2", "4"]


@pytest.mark.parametrize(("set_to", "found"), [(None, 1), ("3", 3)])
def test_a_run_counts_the_jobs_beside_it(monkeypatch, set_to, found) -> None:
    monkeypatch.delenv("LLMTUNE_JOBS_AT_ONCE", raising=False)
    if set_to is not None:
        monkeypatch.setenv("LLMTUNE_JOBS_AT_ONCE", set_to)
    assert jobs_at_once() == found


def test_a_share_of_the_cores_is_what_a_run_counts(monkeypatch) -> None:
    monkeypatch.setenv("LLMTUNE_NUM_CORES", "1")
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("chosen", "count", "found"),
    [
        (None, 2, ("0", "1")),
        ("3, 1", 2, ("3", "1")),
        ("GPU-8932f937,GPU-1a2b3c4d", 2, ("GPU-8932f937", "GPU-1a2b3c4d")),
        ("2,-1,3", 1, ("2",)),
        ("", 0, ()),
    ],
)
def test_gpus_are_named_as_the_environment_names_them(monkeypatch, chosen, count, found) -> None:
    """CUDA counts what comes before the first entry that makes no sense, and so does torch."""
    monkeypatch.setattr(devices, "_torch_is_for_gpus", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == found


def test_torchs_own_file_says_what_it_was_built_for() -> None:
    assert devices._torch_is_for_gpus() == (torch.version.cuda is not None or torch.version.hip is not None)
