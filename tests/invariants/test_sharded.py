"""A model whose weights are sharded over two processes (FSDP2) trains as a whole one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "sharded_worker.py"
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
def outcomes(tiny_llama, tmp_path_factory):
    """What one process and two make of it."""
    place = tmp_path_factory.mktemp("sharded")
    return _run(tiny_llama, place / "one", 1)[0], _run(tiny_llama, place / "two", 2)


def test_a_sharded_model_gives_the_losses_of_a_whole_one(outcomes):
    alone, pair = outcomes
    assert alone["sums"]["losses"][-1] < alone["sums"]["losses"][0]
    for found in pair:
        assert found["sums"]["losses"] == pytest.approx(alone["sums"]["losses"], rel=1e-5)
    held = [found["sums"]["num_parameters"][0] for found in pair]
    assert max(held) < 0.6 * alone["sums"]["num_parameters"][0]


def test_control_gradients_that_are_averaged_are_seen(outcomes):
    alone, pair = outcomes
    for found in pair:
        assert found["means"]["losses"][-1] != pytest.approx(alone["sums"]["losses"][-1], rel=1e-5)
