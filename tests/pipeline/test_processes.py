"""One run in several processes, on a CPU: the numbers of one process, one record, and a truthful end."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient

from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile
from llmtune.stages.recipes import RECIPES

from .conftest import ASSETS, SHORT

TWO = ["hardware=ddp", "hardware.num_processes=2"]
EXACT = ["train.precision=fp32", "method.dropout=0.0", "evaluate.num_samples=0", "export.formats=[adapter]"]
STAGES = ("prepare", "train", "evaluate", "export")


def _words(workplace, *more: str) -> list[str]:
    words = [*SHORT, f"model={ASSETS / 'tiny_llama'}", f"data.path={ASSETS / 'examples.jsonl'}"]
    return [*words, f"cache_dir={workplace.folder / 'cache'}", *more]


def test_two_processes_train_as_one_and_leave_one_record(workplace, capfd) -> None:
    of_one = ["train.micro_batch_size=4", "train.gradient_accumulation_steps=2"]
    assert workplace.train(*EXACT, *of_one, "tracking.backend=none", "runs_dir=alone", "train") == 0
    (alone,) = (workplace.folder / "alone").iterdir()
    capfd.readouterr()
    assert workplace.train(*EXACT, *TWO, "train.micro_batch_size=2", "train.gradient_accumulation_steps=2") == 0
    (folder,) = (workplace.folder / "runs").iterdir()
    assert [bool(workplace.manifest.stage(stage)) for stage in STAGES] == [True] * 4
    one, two = (MetricsLog(path / "metrics.jsonl").losses("train/loss") for path in (alone, folder))
    assert len(two) == 8
    assert two == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in one]
    client = MlflowClient(f"sqlite:///{workplace.folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("llmtune").experiment_id])
    assert run.info.status == RunStatusFile(folder / "status.json").read().status == "FINISHED"
    shown = capfd.readouterr()
    assert shown.out.count("run folder: ") == (folder / "log.txt").read_text().count("run folder: ") == 1
    assert "Traceback" not in shown.err


def test_a_mistake_that_workers_find_is_one_message(workplace, capfd) -> None:
    broken = workplace.folder / "broken.jsonl"
    broken.write_text("not json\n")
    assert workplace.train(*TWO, f"data.path={broken}", "tracking.backend=none") == 2
    shown = capfd.readouterr().err
    assert shown.count("broken.jsonl") == 1
    assert "Traceback" not in shown
    assert "ChildFailedError" not in shown
    assert workplace.newest.log_file.exists()
    assert RunStatusFile(workplace.newest.status_file).read().status == "FAILED"


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_what_ends_the_command_ends_its_workers(workplace, number, error) -> None:
    process = _start_long(workplace)
    running = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert not [one for one in running if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert len(running) >= 3
    record = RunStatusFile(workplace.newest.status_file).read()
    assert (record.status, record.error) == ("KILLED", error)


def test_a_peer_that_dies_fails_the_run(workplace) -> None:
    process = _start_long(workplace)
    first = RunStatusFile(workplace.newest.status_file).read().pid
    (peer,) = [one for one in psutil.Process(first).parent().children() if _rank(one) == "1"]
    peer.kill()
    assert process.wait(60) == 128 + signal.SIGKILL
    assert RunStatusFile(workplace.newest.status_file).read().status == "FAILED"


def test_processes_started_by_accelerate_share_one_folder(tmp_path) -> None:
    script = tmp_path / "share.py"
    script.write_text(
        "import secrets, sys\nfrom pathlib import Path\n"
        "from llmtune import distributed, process_group\nfrom llmtune.launch import shared_folder\n"
        "from llmtune.runs.layout import RunFolder\n"
        "def make():\n"
        "    path = Path(sys.argv[1]) / secrets.token_hex(8)\n    path.mkdir()\n    return RunFolder(path)\n"
        "folder = shared_folder(make)\n"
        "(folder.path / str(distributed.rank())).touch()\nprocess_group.leave()\n"
    )
    (tmp_path / "runs").mkdir()
    flags = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--dynamo_backend", "no"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    command += ["--main_process_port", "0", str(script), str(tmp_path / "runs")]
    subprocess.run(command, env=environment, check=True, timeout=120)
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]


@pytest.mark.parametrize(
    ("end", "status"),
    [(SystemExit(143), "KILLED"), (SystemExit(3), "FAILED"), (KeyboardInterrupt(), "KILLED"), (OSError("x"), "FAILED")],
)
def test_only_a_signal_counts_as_killed(workplace, monkeypatch, end, status) -> None:
    def stage(context) -> None:
        raise end

    monkeypatch.setitem(RECIPES, "prepare", stage)
    with suppress(SystemExit, OSError):
        workplace.train("tracking.backend=none", "prepare")
    assert RunStatusFile(workplace.newest.status_file).read().status == status


def test_a_deterministic_run_sets_what_cublas_reads_before_it_starts(workplace, monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    seen = []
    monkeypatch.setitem(RECIPES, "prepare", lambda context: seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
    for deterministic in ("false", "true"):
        workplace.train("tracking.backend=none", f"train.deterministic={deterministic}", "prepare")
    torch.use_deterministic_algorithms(False)
    assert seen == [None, ":4096:8"]


def _start_long(workplace) -> subprocess.Popen[bytes]:
    """A run of two processes that has trained a step and has many before it."""
    words = _words(workplace, *TWO, "tracking.backend=none", "train.num_epochs=3000", "train")
    process = subprocess.Popen([sys.executable, "-m", "llmtune", *words], stdout=subprocess.DEVNULL)
    _wait_for_a_step(workplace.folder / "runs")
    return process


def _wait_for_a_step(runs: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in runs.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline, "no step was trained"
        time.sleep(0.05)


def _rank(process: psutil.Process) -> str | None:
    return process.environ().get("RANK")
