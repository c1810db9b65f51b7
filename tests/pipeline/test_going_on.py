"""`run=`: going on where a run stopped, and later stages on an earlier run."""

import os
import signal
import subprocess
import sys
import time

import pytest

from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.manifest import Manifest
from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile

from .conftest import ASSETS, SHORT

UNTRACKED = "tracking.backend=none"


def test_only_the_stages_asked_for_and_what_they_need(workplace) -> None:
    assert workplace.train("prepare", UNTRACKED) == 0
    assert workplace.manifest.stage("prepare") and not workplace.manifest.stage("train")
    assert workplace.type("export", f"run={workplace.newest.path}") == 0
    assert workplace.manifest.stage("export") and not workplace.manifest.stage("evaluate")
    assert len(list_runs(workplace.folder / "runs")) == 1


def test_a_finished_run_is_not_done_again(workplace, capsys) -> None:
    assert workplace.train("train", UNTRACKED) == 0
    before = workplace.newest.manifest_file.read_text()
    assert workplace.type("train", "run=latest") == 0
    assert "train: finished earlier" in capsys.readouterr().out
    assert workplace.newest.manifest_file.read_text() == before


def test_training_refuses_another_config_and_names_the_key(workplace, capsys) -> None:
    assert workplace.train("prepare", UNTRACKED) == 0
    assert workplace.type("train", "run=latest", "method.rank=4", "seed=9", "evaluate.num_samples=1") == 2
    errors = capsys.readouterr().err
    assert "method.rank=4: the run began with 16" in errors
    assert "seed=9: the run began with 1" in errors
    assert "num_samples" not in errors


def test_a_later_stage_on_changed_inputs_is_a_run_of_its_own(workplace) -> None:
    assert workplace.train("train", "evaluate", UNTRACKED) == 0
    first = workplace.newest
    other = workplace.folder / "other.jsonl"
    other.write_text("\n".join((ASSETS / "examples.jsonl").read_text().splitlines()[:30]) + "\n")
    assert workplace.type("evaluate", f"run={first.path}", f"data.eval_path={other}") == 0
    second = workplace.newest
    assert second.path != first.path
    assert Manifest(second.manifest_file).stage("evaluate")["num_examples"] == 30
    assert (
        Manifest(second.manifest_file).stage("evaluate")["loss"]
        != Manifest(first.manifest_file).stage("evaluate")["loss"]
    )
    assert f"source_run: {first.path}" in second.config_file.read_text()


def test_a_killed_run_goes_on_to_the_same_end(workplace) -> None:
    words = [*SHORT, f"model={ASSETS / 'tiny_llama'}", f"data.path={ASSETS / 'examples.jsonl'}", UNTRACKED]
    words += ["train", "train.num_epochs=40", "train.checkpoint_every_steps=2", "train.validate_every_steps=100"]
    words += [f"cache_dir={workplace.folder / 'cache'}", "data.num_examples=32"]
    process = subprocess.Popen([sys.executable, "-m", "llmtune", *words], stdout=subprocess.DEVNULL)
    folder = _wait_for_checkpoint(workplace.folder / "runs", step=4)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not folder.final_checkpoint.exists()
    assert workplace.type("train", f"run={folder.path}") == 0

    assert workplace.type(*words) == 0
    straight = workplace.newest
    assert straight.path != folder.path
    assert _weights(folder) == _weights(straight)
    assert MetricsLog(folder.metrics_file).losses("train/loss") == MetricsLog(straight.metrics_file).losses(
        "train/loss"
    )


def test_a_terminated_run_is_marked_killed(workplace) -> None:
    words = [*SHORT, f"model={ASSETS / 'tiny_llama'}", f"data.path={ASSETS / 'examples.jsonl'}", UNTRACKED]
    words += ["train", "train.num_epochs=400", "train.checkpoint_every_steps=2"]
    process = subprocess.Popen([sys.executable, "-m", "llmtune", *words], stdout=subprocess.DEVNULL)
    folder = _wait_for_checkpoint(workplace.folder / "runs", step=2)
    process.terminate()
    assert process.wait(timeout=60) == 143
    record = RunStatusFile(folder.status_file).read()
    assert record is not None and record.status == "KILLED"


def test_a_failed_run_says_why(workplace, capsys) -> None:
    broken = workplace.folder / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": 3}\nnot json\n')
    assert workplace.train(f"data.path={broken}") == 2
    errors = capsys.readouterr().err
    assert f"{broken}:2: " in errors and f"{broken}:3: " in errors
    record = RunStatusFile(workplace.newest.status_file).read()
    assert record is not None and record.status == "FAILED"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "run=nowhere"], "run=nowhere: no run folder is there"),
        (["train", "run=latest"], "there is no run in"),
        (["model=./nowhere", "data.path=x.jsonl", "tracking.backend=none"], "no such folder"),
    ],
)
def test_what_is_not_there_is_named(workplace, capsys, words, message) -> None:
    assert workplace.type(*words) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def _wait_for_checkpoint(runs: os.PathLike, step: int) -> RunFolder:
    from pathlib import Path

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = [
            path for path in Path(runs).glob("*/checkpoints/checkpoint-*") if path.name.rpartition("-")[2].isdigit()
        ]
        later = [path for path in found if int(path.name.rpartition("-")[2]) >= step]
        if later:
            return RunFolder(later[0].parent.parent)
        time.sleep(0.02)
    raise AssertionError("no checkpoint was written")


def _weights(folder: RunFolder) -> bytes:
    return (folder.final_checkpoint / "adapter_model.safetensors").read_bytes()
