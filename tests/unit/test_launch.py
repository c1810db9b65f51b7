"""`hardware` becomes processes."""

import json
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from llmtune.config.hardware import HardwareConfig
from llmtune.errors import ConfigError
from llmtune.launch import launch_command, num_processes_for, shared_folder
from llmtune.launcher import WorkerEnd, first_failure, worker_end
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


def _failure(tmp_path, rank, exitcode, left=None) -> ProcessFailure:
    path = tmp_path / f"{rank}.json"
    if left is not None:
        path.write_text(json.dumps(left))
    return ProcessFailure(rank, pid=rank + 1, exitcode=exitcode, error_file=str(path))


def test_a_message_counts_before_what_follows_from_it(tmp_path) -> None:
    followed = _failure(tmp_path, 0, 1)
    mistaken = _failure(tmp_path, 1, -15, {"message": "data.path: no", "exit_status": 2, "follows": False})
    assert worker_end(first_failure({0: followed, 1: mistaken})) == WorkerEnd(2, "data.path: no")


def test_a_worker_that_was_told_to_stop_is_not_the_cause(tmp_path) -> None:
    told, killed = _failure(tmp_path, 0, 143), _failure(tmp_path, 1, -9)
    end = worker_end(first_failure({0: told, 1: killed}))
    assert (end.exit_status, end.follows) == (137, True)
    assert end.message is not None
    assert end.message.startswith("process 1 (number 2) was killed")


def test_what_another_says_of_a_process_that_hung_counts_before_its_end(tmp_path) -> None:
    hung = _failure(tmp_path, 0, -9)
    other = _failure(tmp_path, 1, 1, {"message": "process 0 hangs", "exit_status": 1, "follows": True})
    assert worker_end(first_failure({0: hung, 1: other})) == WorkerEnd(1, "process 0 hangs", follows=True)


def test_one_process_makes_its_folder_itself(tmp_path) -> None:
    assert shared_folder(lambda: RunFolder(tmp_path)) == RunFolder(tmp_path)


@pytest.mark.parametrize(
    ("exit_status", "recorded"),
    [(143, ("KILLED", "terminated")), (130, ("KILLED", "interrupted")), (-1, ("KILLED", "hung up"))],
)
def test_a_run_whose_workers_all_ended_by_a_signal_was_killed(tmp_path, exit_status, recorded) -> None:
    failures = {rank: _failure(tmp_path, rank, exit_status) for rank in range(2)}
    assert worker_end(first_failure(failures)).recorded == recorded


def test_control_a_worker_that_failed_beside_one_that_was_told_to_stop_makes_the_run_failed(tmp_path) -> None:
    failures = {0: _failure(tmp_path, 0, 143), 1: _failure(tmp_path, 1, 1)}
    assert worker_end(first_failure(failures)).recorded == ("FAILED", "a process of the run ended with exit status 1")
