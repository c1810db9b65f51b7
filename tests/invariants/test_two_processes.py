"""Two processes train as one: the same losses, and equal weights in both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "two_process_worker.py"
TIMEOUT_SECONDS = 150


def _run(model_folder, results, num_processes):
    results.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(num_processes)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(WORKER), str(model_folder), str(results)]
    workers = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(num_processes)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=TIMEOUT_SECONDS)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    return [json.loads((results / f"rank{rank}.json").read_text()) for rank in range(num_processes)]


@pytest.fixture(scope="module")
def alone(tiny_llama, tmp_path_factory):
    """What one process makes of it."""
    return _run(tiny_llama, tmp_path_factory.mktemp("processes") / "one", 1)[0]


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory):
    """Where two processes write."""
    return tmp_path_factory.mktemp("processes") / "two"


@pytest.fixture(scope="module")
def pair(tiny_llama, pair_folder):
    """What two processes make of it."""
    return _run(tiny_llama, pair_folder, 2)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_give_the_losses_of_one(alone, pair, method):
    expected, first, second = alone[method], pair[0][method], pair[1][method]
    assert len(expected["steps"]) == 10
    for step, (loss, grad_norm) in expected["steps"].items():
        assert first["steps"][step][0] == pytest.approx(loss, rel=1e-5)
        assert first["steps"][step][1] == pytest.approx(grad_norm, rel=1e-4)
    assert first["steps"] == second["steps"]
    assert first["weights"] == second["weights"]
    assert second["num_micro_batches"][-1] == 0, "the last step leaves one process without a micro-batch"


def test_control_without_the_exchange_of_gradients_they_part(alone, pair):
    expected, first, second = alone["lora"], pair[0]["no exchange"], pair[1]["no exchange"]
    assert first["weights"] != second["weights"]
    assert first["steps"]["10"][0] != pytest.approx(expected["steps"]["10"][0], rel=1e-5)


def test_the_first_process_decides_and_writes_for_both(pair, pair_folder):
    assert pair[0]["lora"]["best"] == pair[1]["lora"]["best"] == 1.0, "its validation loss counts in both"
    names = sorted(path.name for path in (pair_folder / "lora" / "checkpoints").iterdir())
    assert names == ["checkpoint-10", "checkpoint-4", "checkpoint-8", "checkpoint-best", "checkpoint-final"]
