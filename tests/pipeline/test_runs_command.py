"""`runs` on real runs: one that is followed while it trains, and one that is killed meanwhile."""

import json
import signal
import subprocess
import sys
import time

import pytest

from llmtune.commands import runs

from .conftest import ASSETS, SHORT

_FOLLOW = """
import sys
from llmtune.commands import runs
from llmtune.errors import LlmtuneError, report
try:
    sys.exit(runs.run(sys.argv[1:]))
except LlmtuneError as error:
    sys.exit(report(error))
"""


def _start(workplace, *words):
    """A run in a process of its own, as another terminal would have it."""
    typed = [
        *SHORT,
        f"model={ASSETS / 'tiny_llama'}",
        f"data.path={ASSETS / 'examples.jsonl'}",
        "evaluate.num_samples=0",
    ]
    command = [sys.executable, "-m", "llmtune", "evaluate", *typed, *words, f"cache_dir={workplace.folder / 'cache'}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _follow(workplace):
    """The follower in a process of its own, once it follows."""
    follower = subprocess.Popen(
        [sys.executable, "-c", _FOLLOW, "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=workplace.folder,
    )
    assert follower.stdout is not None
    assert follower.stdout.readline().startswith("runs/")
    assert follower.stdout.readline().startswith("step ")
    return follower


def _wait_until(there):
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _metrics(workplace):
    return [file for file in (workplace.folder / "runs").glob("*/metrics.jsonl") if file.stat().st_size]


def test_a_live_run_is_followed_to_its_end(workplace, capsys) -> None:
    process = _start(workplace, "train.num_epochs=8")
    _wait_until(lambda: list((workplace.folder / "runs").glob("*/config.yaml")))
    assert runs.run(["--follow"]) == 0
    shown = capsys.readouterr().out
    assert process.wait(timeout=60) == 0
    assert "step 64/64: loss " in shown
    assert " tokens/s" in shown
    assert "validation " in shown
    assert shown.splitlines()[-1].startswith("FINISHED after ")
    assert "test loss " in shown.splitlines()[-1]
    assert runs.run(["--json", "method=lora", "train.num_epochs=8"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["status"], entry["loss_kind"], entry["problems"]) == ("FINISHED", "test", [])
    assert f"test loss {entry['loss']:.4f}" in shown


@pytest.mark.slow
def test_a_run_that_is_killed_ends_the_follower(workplace, capsys) -> None:
    process = _start(workplace, "train.num_epochs=3000")
    _wait_until(lambda: _metrics(workplace))
    follower = _follow(workplace)
    process.kill()
    process.wait(timeout=30)
    rest, _ = follower.communicate(timeout=30)
    assert follower.returncode == 1
    assert "KILLED after " in rest
    assert "the process is gone" in rest
    assert runs.run(["status=killed"]) == 0
    assert "the process is gone" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_ends_the_follower_and_not_the_run(workplace) -> None:
    process = _start(workplace, "train.num_epochs=3000")
    try:
        _wait_until(lambda: _metrics(workplace))
        follower = _follow(workplace)
        follower.send_signal(signal.SIGINT)
        _, errors = follower.communicate(timeout=30)
        assert (follower.returncode, errors) == (130, "llmtune: stopped following; the run goes on\n")
        (file,) = _metrics(workplace)
        size = file.stat().st_size
        _wait_until(lambda: file.stat().st_size > size)
        status = json.loads((file.parent / "status.json").read_text())["status"]
        assert (process.poll(), status) == (None, "RUNNING")
    finally:
        process.kill()
        process.wait(timeout=30)
