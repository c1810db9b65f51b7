"""One run in several processes, on a CPU: the numbers of one process, one record, and a truthful end."""

import os
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
import torch
from mlflow import MlflowClient

from llmtune.runs.manifest import Manifest
from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile
from llmtune.stages.recipes import RECIPES

from .conftest import ASSETS, SHORT, Workplace
from .long_runs import LAUNCHERS, TWO, wait_for

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
    assert _tracked_status(workplace) == _status(workplace) == "FINISHED"
    shown = capfd.readouterr()
    assert shown.out.count("run folder: ") == (folder / "log.txt").read_text().count("run folder: ") == 1
    assert "Traceback" not in shown.err


def _launch(workplace, launcher: str, *more: str) -> subprocess.CompletedProcess[str]:
    """A command under a launcher of the person's choice; both start one process where none is told to use the CPU."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "llmtune", *_words(workplace, *more)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_launcher_of_the_persons_choice_starts_one_run(workplace, launcher) -> None:
    ended = _launch(workplace, launcher, *EXACT)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(list((workplace.folder / "runs").iterdir())) == 1
    assert [bool(workplace.manifest.stage(stage)) for stage in STAGES] == [True] * 4
    assert workplace.manifest.section("choices")["num_processes"] == 2
    assert _tracked_status(workplace) == _status(workplace) == "FINISHED"
    assert ended.stdout.count("run folder: ") == 1


@pytest.mark.slow
def test_a_mistake_under_a_launcher_is_told_once(workplace) -> None:
    broken = workplace.folder / "broken.jsonl"
    broken.write_text("not json\n")
    for mistake, told in (("method.rnk=3", "there is no such key"), (f"data.path={broken}", "not valid JSON")):
        ended = _launch(workplace, "torchrun", mistake, "tracking.backend=none")
        assert ended.returncode == 1, "torchrun's own, whatever its processes end with"
        assert ended.stderr.count(f"llmtune: {told}") + ended.stderr.count(f" {told}") == 1
        assert "exitcode  : 2" in ended.stderr
    assert _status(workplace) == "FAILED"


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_in_another_number_of_processes(workplace, capfd, before, after) -> None:
    words = ["train.num_epochs=25", "train.checkpoint_every_steps=2", "tracking.backend=none", "train"]
    words = [*EXACT, *words, "data.num_examples=32"]
    hardware = {1: ["hardware=cpu"], 2: TWO}
    micro = "train.gradient_accumulation_steps=" + ("2" if before == 2 else "4")
    process = subprocess.Popen(
        [sys.executable, "-m", "llmtune", *_words(workplace, *words, *hardware[before], micro)],
        stdout=subprocess.DEVNULL,
    )
    wait_for(process, workplace.folder / "runs", "checkpoints/checkpoint-4")
    children = psutil.Process(process.pid).children(recursive=True)
    for one in (*children, process):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(30)
    folder = workplace.newest
    assert workplace.type("train", f"run={folder.path}", *hardware[after]) == 0
    choices = workplace.manifest.section("choices")
    assert choices["num_processes"] == after
    assert [entry["num_processes"] for entry in choices["divisions"]] == [before, after]
    assert "a step keeps its 16 examples" in folder.log_file.read_text()
    of_one = ["train.gradient_accumulation_steps=4", "runs_dir=alone"]
    assert workplace.type(*_words(workplace, *words, *of_one)) == 0
    (alone,) = (workplace.folder / "alone").iterdir()
    expected, found = (MetricsLog(path / "metrics.jsonl").losses("train/loss") for path in (alone, folder.path))
    assert len(found) == 50
    assert found == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in expected]


_ONE_PADS = """
import os, sys
from llmtune.cli import run
from llmtune.models.attention import attention_of
from llmtune.models.packing import AttentionChoice
from llmtune.stages import training_choices
if os.environ["RANK"] == "1":
    training_choices.choose_attention = lambda model, *given: AttentionChoice(attention_of(model), False, "padded")
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_process_that_may_not_pack_makes_none_pack(workplace, capfd) -> None:
    (workplace.folder / "one_pads.py").write_text(_ONE_PADS)
    stages = ["train", "evaluate", "tracking.backend=none"]
    command = [sys.executable, "-m", *LAUNCHERS["torchrun"], str(workplace.folder / "one_pads.py")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    words = _words(workplace, *EXACT, "train.gradient_accumulation_steps=1", *stages)
    assert subprocess.run([*command, *words], env=environment, timeout=240, check=False).returncode == 0
    two = workplace.manifest
    assert two.section("choices")["packed"] is False
    assert workplace.train(*EXACT, "train.gradient_accumulation_steps=2", "runs_dir=alone", *stages) == 0
    (alone,) = (workplace.folder / "alone").iterdir()
    one = Manifest(alone / "manifest.json")
    for stage, figure in (("train", "final_loss"), ("evaluate", "loss"), ("evaluate", "num_examples")):
        assert two.stage(stage)[figure] == pytest.approx(one.stage(stage)[figure], rel=1e-5)


def test_a_mistake_that_workers_find_is_one_message(workplace, capfd) -> None:
    broken = workplace.folder / "broken.jsonl"
    broken.write_text("not json\n")
    assert workplace.train(*TWO, f"data.path={broken}", "tracking.backend=none") == 2
    shown = capfd.readouterr().err
    assert shown.count("broken.jsonl") == 1
    assert "Traceback" not in shown
    assert "ChildFailedError" not in shown
    assert workplace.newest.log_file.exists()
    assert _status(workplace) == "FAILED"


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
    assert _status(workplace) == status


def test_a_deterministic_run_sets_what_cublas_reads_before_it_starts(workplace, monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    seen = []
    monkeypatch.setitem(RECIPES, "prepare", lambda context: seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
    for deterministic in ("false", "true"):
        workplace.train("tracking.backend=none", f"train.deterministic={deterministic}", "prepare")
    torch.use_deterministic_algorithms(False)
    assert seen == [None, ":4096:8"]


def _status(workplace: Workplace) -> str:
    """What the newest run's folder says."""
    record = RunStatusFile(workplace.newest.status_file).read()
    assert record is not None
    return record.status


def _tracked_status(workplace: Workplace) -> str:
    """What MLflow says of its only run."""
    client = MlflowClient(f"sqlite:///{workplace.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("llmtune")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run.info.status
