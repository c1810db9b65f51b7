"""SIGTERM and Ctrl-C while a run trains: the step under way is finished and saved, and the run goes on to its end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.manifest import Manifest
from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile
from llmtune.training.checkpoint import list_checkpoints

from .conftest import ASSETS, SHORT

WORDS = [*SHORT, f"model={ASSETS / 'tiny_llama'}", f"data.path={ASSETS / 'examples.jsonl'}"]
WORDS += ["train", "train.num_epochs=3", "train.validate_every_steps=6", "train.checkpoint_every_steps=100"]
TWO = ["hardware=ddp", "hardware.num_processes=2", "train.micro_batch_size=2", "train.num_epochs=20"]
EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
BOTH = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
STATUS_OF_A_HANG_UP = 129
WAY_TOO_LONG = 300
"""Seconds of a save that is longer than a command may take here."""
NAMES = {signal.SIGTERM: ("SIGTERM", "terminated"), signal.SIGINT: ("Ctrl-C", "interrupted")}

SIGNALLED = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from llmtune.cli import main
from llmtune.evaluation import perplexity
from llmtune.training import loop
where, step, numbers = sys.argv[1], int(sys.argv[2]), [int(number) for number in sys.argv[3].split(",")]
del sys.argv[1:4]
done = 0
def send():
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.7)
def judged(parts, state, *given, original=loop.judge_step):
    global done
    done = state.global_step + 1
    if where == "step" and done == step:
        send()
    return original(parts, state, *given)
def added(*given, original=perplexity._add_losses):
    global where
    if where == "validation" and done == step:
        where = ""
        send()
    return original(*given)
loop.judge_step, perplexity._add_losses = judged, added
main()
"""
"""The command, which gets the signals inside a step, or inside the validation after it."""

DURING_A_SAVE = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from llmtune.cli import main
from llmtune.training import checkpoint
seconds, pause, numbers = float(sys.argv[1]), float(sys.argv[2]), [int(number) for number in sys.argv[3].split(",")]
del sys.argv[1:4]
def send():
    while numbers:
        os.kill(os.getpid(), numbers.pop(0))
        time.sleep(pause)
def late(*given, original=checkpoint._write_index):
    threading.Thread(target=send, daemon=True).start()
    time.sleep(seconds)
    original(*given)
checkpoint._write_index = late
main()
"""
"""The command, whose saves take so many seconds; during the first it gets the signals, with pauses."""

AFTER_THE_STAGES = """
import os, sys
from llmtune.cli import main
from llmtune.stages import results
number = int(sys.argv[2])
del sys.argv[1:3]
results.show_results = lambda context: os.kill(os.getpid(), number)
main()
"""
"""The command, which gets the signal after its last stage."""

ONE_OF_TWO = """
import json, os, signal, sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[2])
signal.signal(signal.SIGINT, signal.default_int_handler)
from tiny_training import LORA, Setup, make_parts
from llmtune.training import loop
from llmtune.training.callbacks.progress import ProgressCallback
from llmtune.training.parts import TrainState
rank, results, number = int(os.environ["RANK"]), Path(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{results / 'meeting'}", rank=rank, world_size=2,
                        timeout=timedelta(seconds=60))
def judged(parts, state, *given, original=loop.judge_step):
    if rank == 1 and state.global_step == 2:
        os.kill(os.getpid(), number)
    return original(parts, state, *given)
loop.judge_step = judged
class Line:
    def advance(self, amount=1, note=""): ...
parts, state = make_parts(Path(sys.argv[1]), Setup(LORA, gradient_accumulation_steps=1, num_processes=2)), TrainState()
try:
    loop.train(parts, state, [ProgressCallback(Line())])
    end = "the last step"
except (KeyboardInterrupt, SystemExit) as stop:
    end = type(stop).__name__
(results / f"rank{rank}.json").write_text(json.dumps([end, state.global_step]))
dist.destroy_process_group()
"""


@dataclass
class Ended:
    """How a command that got signals ended."""

    exit_status: int
    out: str
    folder: RunFolder

    @property
    def checkpoints(self) -> list[str]:
        return [path.name for path in list_checkpoints(self.folder.checkpoints)]

    def end(self) -> tuple[object, ...]:
        """What must be equal in a run that was never disturbed."""
        log = MetricsLog(self.folder.metrics_file)
        trained = Manifest(self.folder.manifest_file).stage("train")
        assert len(log.losses("train/loss")) == trained["steps"]
        assert trained["weights_sha256"]
        kept = ("weights_sha256", "best_step", "best_validation_loss", "num_tokens")
        losses = [log.losses(name) for name in ("train/loss", "evaluate/validation_loss")]
        return *(trained[name] for name in kept), *losses, self.checkpoints


def _run(folder: Path, *words: str, code: str | None = None, numbers: str = "", script: str = SIGNALLED) -> Ended:
    """Type a command in a folder, in a process of its own; `code` and `numbers` are what the script takes."""
    start = ["-m", "llmtune"] if code is None else ["-c", script, *code.split(), *numbers.split()]
    command = [sys.executable, *start, *words, f"cache_dir={folder / 'cache'}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=200)
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stdout, list_runs(folder / "runs")[0].folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Ended:
    ended = _run(tmp_path_factory.mktemp("undisturbed"), *WORDS, "tracking.backend=none")
    assert ended.exit_status == 0
    return ended


@pytest.fixture(scope="module")
def undisturbed_in_two(tmp_path_factory) -> Ended:
    ended = _run(tmp_path_factory.mktemp("undisturbed-in-two"), *WORDS, *TWO, "tracking.backend=none")
    assert ended.exit_status == 0
    return ended


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_the_step_under_way_is_finished_and_saved_and_the_run_goes_on_from_it(workplace, undisturbed, number) -> None:
    ended = _run(workplace.folder, *WORDS, code="step 4", numbers=str(int(number)))
    said, error = NAMES[number]
    assert ended.exit_status == EXIT_STATUS[number]
    assert ended.checkpoints == ["checkpoint-4"]
    assert not ended.folder.final_checkpoint.exists()
    assert f"{said}: finishing step 4, then saving; once more stops at once\n" in ended.out
    command = f"python -m llmtune train run={ended.folder.path}"
    assert f"stopped, saved at step 4; to go on: {command}\n" in ended.out
    record = RunStatusFile(ended.folder.status_file).read()
    assert (record.status, record.error) == ("KILLED", error)
    client = MlflowClient(f"sqlite:///{workplace.folder / 'mlflow.db'}")
    assert client.get_run(record.mlflow_run_id).info.status == "KILLED"

    assert workplace.type(*command.split()[3:]) == 0
    assert ended.end() == undisturbed.end()
    assert client.get_run(record.mlflow_run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM, signal.SIGTERM), pytest.param((signal.SIGTERM, signal.SIGINT), marks=pytest.mark.slow)]
)
def test_a_second_signal_ends_the_run_at_once(workplace, numbers) -> None:
    sent = ",".join(str(int(number)) for number in numbers)
    ended = _run(workplace.folder, *WORDS, "tracking.backend=none", code="step 4", numbers=sent)
    assert ended.exit_status == EXIT_STATUS[numbers[1]]
    assert ended.checkpoints == []
    assert RunStatusFile(ended.folder.status_file).read().status == "KILLED"
    assert "stopped; to go on: python -m llmtune train run=" in ended.out


@pytest.mark.parametrize("last", BOTH, ids=lambda number: number.name)
def test_a_second_signal_waits_for_no_checkpoint(workplace, undisturbed, last) -> None:
    words = [*WORDS, "tracking.backend=none", "train.checkpoint_every_steps=2"]
    ended = _run(workplace.folder, *words, code=f"{WAY_TOO_LONG} 0.8 15,{int(last)}", script=DURING_A_SAVE)
    assert (ended.exit_status, ended.checkpoints) == (EXIT_STATUS[last], [])
    assert RunStatusFile(ended.folder.status_file).read().status == "KILLED"
    assert "stopped; to go on: python -m llmtune train run=" in ended.out
    assert workplace.type("train", f"run={ended.folder.path}") == 0
    assert ended.end()[:-1] == undisturbed.end()[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("numbers", ["15", "15,15"], ids=["one signal", "with an echo"])
def test_the_first_signal_waits_for_the_checkpoints(workplace, numbers) -> None:
    words = [*WORDS, "tracking.backend=none", "train.checkpoint_every_steps=2"]
    ended = _run(workplace.folder, *words, code=f"1.5 0.1 {numbers}", script=DURING_A_SAVE)
    assert ended.exit_status == EXIT_STATUS[signal.SIGTERM]
    assert len(ended.checkpoints) >= 2, "the one under way, and the one of the step that was finished"


@pytest.mark.slow
def test_a_validation_that_was_made_up_for_before_a_kill_is_recorded_once(workplace, undisturbed) -> None:
    ended = _run(workplace.folder, *WORDS, code="step 6", numbers="15")
    assert (ended.exit_status, ended.checkpoints) == (143, ["checkpoint-6"])
    log = MetricsLog(ended.folder.metrics_file)
    again = _run(workplace.folder, "train", f"run={ended.folder.path}", code="step 8", numbers="9")
    assert (again.exit_status, again.checkpoints) == (-9, ["checkpoint-6"])
    assert [step for step, _ in log.losses("evaluate/validation_loss")] == [6]
    assert workplace.type("train", f"run={ended.folder.path}") == 0
    assert ended.end() == undisturbed.end()
    client = MlflowClient(f"sqlite:///{workplace.folder / 'mlflow.db'}")
    run_id = RunStatusFile(ended.folder.status_file).read().mlflow_run_id
    sent = client.get_metric_history(run_id, "evaluate/validation_loss")
    assert [(one.step, one.value) for one in sent] == log.losses("evaluate/validation_loss")


def test_a_signal_where_a_validation_is_due_leaves_it_to_the_run_that_goes_on(workplace, undisturbed) -> None:
    ended = _run(workplace.folder, *WORDS, "tracking.backend=none", code="step 6", numbers="15")
    assert (ended.exit_status, ended.checkpoints) == (143, ["checkpoint-6"])
    assert workplace.type("train", f"run={ended.folder.path}") == 0
    assert ended.end() == undisturbed.end()


def test_a_signal_inside_a_validation_ends_it_and_saves_the_step(workplace, undisturbed) -> None:
    words = [*WORDS, "tracking.backend=none", "evaluate.batch_tokens=1"]
    ended = _run(workplace.folder, *words, code="validation 12", numbers="15")
    assert (ended.exit_status, ended.checkpoints[-1]) == (143, "checkpoint-12")
    losses = MetricsLog(ended.folder.metrics_file).losses("evaluate/validation_loss")
    assert [step for step, _ in losses] == [6]
    assert workplace.type("train", f"run={ended.folder.path}") == 0
    (_, best, _, tokens, train, validation, _), expected = ended.end(), undisturbed.end()
    assert (best, tokens, train) == (expected[1], expected[3], expected[4])
    assert [step for step, _ in validation] == [step for step, _ in expected[5]] == [6, 12, 18, 24]


@pytest.mark.slow
def test_control_a_validation_that_nobody_makes_up_for_is_missed(workplace, undisturbed, monkeypatch) -> None:
    from llmtune.training.callbacks.validation import ValidationCallback

    ended = _run(workplace.folder, *WORDS, "tracking.backend=none", code="step 6", numbers="15")
    monkeypatch.setattr(ValidationCallback, "on_train_start", lambda *given: None)
    assert workplace.type("train", f"run={ended.folder.path}") == 0
    assert ended.end() != undisturbed.end()


@pytest.mark.slow
@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_two_processes_stop_after_the_same_step_and_go_on_to_the_same_end(
    workplace, undisturbed_in_two, number
) -> None:
    words = [*WORDS, *TWO, "tracking.backend=none", f"cache_dir={workplace.folder / 'cache'}"]
    process = subprocess.Popen([sys.executable, "-m", "llmtune", *words], stdout=subprocess.PIPE, text=True)
    _wait_for_a_step(workplace.folder / "runs")
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    folder = workplace.newest
    ended = Ended(process.returncode, out, folder)
    assert ended.exit_status == EXIT_STATUS[number]
    assert RunStatusFile(folder.status_file).read().status == "KILLED"
    (saved,) = re.findall(r"stopped, saved at step (\d+); to go on", out)
    assert f"checkpoint-{saved}" in ended.checkpoints
    assert [step for step, _ in MetricsLog(folder.metrics_file).losses("train/loss")] == list(range(1, int(saved) + 1))
    assert workplace.type("train", f"run={folder.path}") == 0
    assert ended.end()[:-1] == undisturbed_in_two.end()[:-1]


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path, number) -> None:
    code = [sys.executable, "-c", ONE_OF_TWO, str(ASSETS / "tiny_llama"), str(ASSETS.parent / "invariants")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen([*code, str(tmp_path), str(int(number))], env={**environment, "RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    ends = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    # its share of step 3's sum had been sent, so step 4 carries the request
    assert ends == [["KeyboardInterrupt" if number == signal.SIGINT else "SystemExit", 4]] * 2


@pytest.mark.parametrize("stage", [pytest.param("prepare", marks=pytest.mark.slow), "evaluate"])
def test_outside_of_training_the_first_signal_ends_the_run(workplace, stage) -> None:
    words = [word for word in WORDS if word != "train"]
    code = (
        "import os, signal, sys, time\nfrom llmtune.stages.recipes import RECIPES\nfrom llmtune.cli import main\n"
        f"def stage(context):\n    os.kill(os.getpid(), 15)\n    time.sleep(60)\nRECIPES[{stage!r}] = stage\nmain()"
    )
    command = [sys.executable, "-c", code, *words, "tracking.backend=none", stage, "cache_dir=cache"]
    started = time.monotonic()
    assert subprocess.run(command, check=False, timeout=120, stdout=subprocess.DEVNULL).returncode == 143
    assert time.monotonic() - started < 60
    assert RunStatusFile(workplace.newest.status_file).read().status == "KILLED"


AT_AN_IMPORT = """
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from llmtune.cli import main
where, number = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
def imported(name, *given, original=builtins.__import__, **named):
    if name == where:
        builtins.__import__ = original
        os.kill(os.getpid(), number)
    return original(name, *given, **named)
builtins.__import__ = imported
main()
"""
"""The command, which gets the signal as it imports a module."""

IN_THE_TRACKER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from llmtune.cli import main
from llmtune.tracking import mlflow
number = int(sys.argv[1])
del sys.argv[1]
def queue(*given, original=mlflow.EntryQueue, **named):
    os.kill(os.getpid(), number)
    return original(*given, **named)
mlflow.EntryQueue = queue
main()
"""
"""The command, which gets the signal as it opens its MLflow run."""


@pytest.mark.parametrize("number", EXIT_STATUS, ids=lambda number: number.name)
@pytest.mark.parametrize("module", ["llmtune.stages.context", "transformers", "llmtune.stages.record"])
def test_a_signal_while_the_run_starts_is_recorded(workplace, module, number) -> None:
    words = [*WORDS, "tracking.backend=none"]
    ended = _run(workplace.folder, *words, code=module, numbers=str(int(number)), script=AT_AN_IMPORT)
    assert ended.exit_status == EXIT_STATUS[number]
    record = RunStatusFile(ended.folder.status_file).read()
    assert (record.status, record.error) == ("KILLED", NAMES[number][1])
    assert f"stopped; to go on: python -m llmtune train run={ended.folder.path}\n" in ended.out


def test_a_signal_while_the_mlflow_run_is_opened_ends_that_too(workplace) -> None:
    ended = _run(workplace.folder, *WORDS, numbers="15", code="", script=IN_THE_TRACKER)
    record = RunStatusFile(ended.folder.status_file).read()
    assert (ended.exit_status, record.status) == (143, "KILLED")
    client = MlflowClient(f"sqlite:///{workplace.folder / 'mlflow.db'}")
    assert client.get_run(record.mlflow_run_id).info.status == "KILLED"


def test_ctrl_c_while_the_command_itself_is_imported_is_no_traceback(tmp_path) -> None:
    code = AT_AN_IMPORT.replace("from llmtune.cli import main\n", "").replace("main()", "")
    code += "sys.argv.append('--version')\nfrom llmtune.cli import main\nmain()"
    command = [sys.executable, "-c", code, "psutil", str(int(signal.SIGINT))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "llmtune: interrupted\n")


def test_a_terminal_that_hangs_up_is_a_signal_like_the_others(workplace, undisturbed) -> None:
    ended = _run(workplace.folder, *WORDS, "tracking.backend=none", code="step 4", numbers=str(int(signal.SIGHUP)))
    assert (ended.exit_status, ended.checkpoints) == (STATUS_OF_A_HANG_UP, ["checkpoint-4"])
    record = RunStatusFile(ended.folder.status_file).read()
    assert (record.status, record.error) == ("KILLED", "hung up")
    assert workplace.type("train", f"run={ended.folder.path}") == 0
    assert ended.end() == undisturbed.end()


def test_a_reader_that_is_gone_ends_no_training(workplace, undisturbed) -> None:
    near, far = os.pipe()
    os.close(near)
    command = [sys.executable, "-m", "llmtune", *WORDS, "tracking.backend=none", "cache_dir=cache"]
    done = subprocess.run(command, stdout=far, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    os.close(far)
    assert (done.returncode, done.stderr) == (0, "")
    assert RunStatusFile(workplace.newest.status_file).read().status == "FINISHED"
    assert Ended(0, "", workplace.newest).end() == undisturbed.end()


def test_of_two_commands_on_a_run_at_once_one_trains(workplace, undisturbed) -> None:
    ended = _run(workplace.folder, *WORDS, "tracking.backend=none", code="step 4", numbers="15")
    command = [sys.executable, "-m", "llmtune", "train", f"run={ended.folder.path}"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], told
    (refused,) = filter(None, told)
    assert "wait for its end, or stop it first" in refused
    assert ended.end() == undisturbed.end()


@pytest.mark.slow
def test_nothing_is_said_of_going_on_where_nothing_is_left(workplace) -> None:
    ended = _run(workplace.folder, *WORDS, "tracking.backend=none", code="0", numbers="15", script=AFTER_THE_STAGES)
    assert ended.exit_status == 143
    assert "to go on" not in ended.out


def _wait_for_a_step(runs: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in runs.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline, "no step was trained"
        time.sleep(0.01)
