"""SIGKILL at any moment, also inside a save: the run goes on and ends with the bits of one that was never killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "killing.py"


def _kill(model_folder, folder, num_kills, seed, tokens_per_step=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(SCRIPT), *map(str, (model_folder, folder, num_kills, seed, tokens_per_step))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())


def _check(result, num_steps=10):
    trials, straight = result["trials"], result["straight"]
    assert [step for step, _ in straight["losses"]] == list(range(1, num_steps + 1))
    for trial in trials:
        assert trial["end"] == straight, trial["how"]
        assert not trial["damaged"], trial["how"]
        assert trial["whole"] or not trial["saved"], f"{trial['how']}: no checkpoint was left, of {trial['saved']}"
    in_save = sum(trial["in_save"] for trial in trials)
    print(
        f"{len(trials)} kills, {in_save} of them inside a save ({result['changes']} changes of files a run): "
        f"{len(trials)} resumed, {len(trials)} equal in weights, losses, state and checkpoints"
    )
    return in_save


@pytest.mark.fast
def test_killed_runs_end_as_if_they_had_not_been(tiny_llama, tmp_path):
    assert _check(_kill(tiny_llama, tmp_path, num_kills=4, seed=1)) >= 2


def test_killed_runs_of_steps_of_tokens_end_so_too(tiny_llama, tmp_path):
    """Epochs of 6 and 7 steps."""
    assert _check(_kill(tiny_llama, tmp_path, num_kills=4, seed=1, tokens_per_step=70), num_steps=13) >= 2


@pytest.mark.slow
def test_fifty_killed_runs_end_as_if_they_had_not_been(tiny_llama, tmp_path):
    assert _check(_kill(tiny_llama, tmp_path, num_kills=50, seed=2)) >= 10
