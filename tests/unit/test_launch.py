"""`hardware` becomes processes."""

from pathlib import Path

import pytest

from llmtune.config.hardware import HardwareConfig
from llmtune.errors import ConfigError
from llmtune.launch import launch_command, num_processes_for
from llmtune.runs.layout import RunFolder

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("hardware", "count"),
    [
        (HardwareConfig(kind="cpu"), 1),
        (HardwareConfig(kind="single_gpu"), 1),
        (HardwareConfig(kind="ddp", num_processes=3), 3),
        (HardwareConfig(kind="auto", num_processes=2), 2),
    ],
)
def test_processes(hardware, count) -> None:
    assert num_processes_for(hardware) == count


def test_every_gpu_is_taken(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert num_processes_for(HardwareConfig(kind="auto")) == 4
    assert num_processes_for(HardwareConfig(kind="ddp")) == 4


def test_several_processes_without_a_gpu_need_a_number(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert num_processes_for(HardwareConfig(kind="auto")) == 1
    with pytest.raises(ConfigError, match=r"hardware\.num_processes=2"):
        num_processes_for(HardwareConfig(kind="ddp"))


def test_the_command_starts_workers_on_the_runs_folder() -> None:
    command = launch_command(RunFolder(Path("runs/x")), ["train"], 2)
    assert command[-4:] == [
        "-m",
        "llmtune.worker",
        "runs/x",
        "train",
    ]
    assert command[command.index("--num_processes") + 1] == "2"
