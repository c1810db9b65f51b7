"""A model whose weights are sharded over two processes (FSDP2) trains as a whole one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharded_worker import train_in_every_way

WORKER = Path(__file__).parent / "sharded_worker.py"
TIMEOUT_SECONDS = 150


def _run_two(model_folder, results):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(WORKER), str(model_folder), str(results)]
    workers = [
        subprocess.Popen(command, env={**environment, "RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=TIMEOUT_SECONDS)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    return [json.loads((results / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def outcomes(tiny_llama, tmp_path_factory):
    """What one process and two make of it."""
    torch.set_num_threads(1)
    return train_in_every_way(tiny_llama), _run_two(tiny_llama, tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_sharded_model_gives_the_losses_of_a_whole_one(outcomes, optimizer):
    alone, *pair = (one[f"{optimizer} sums"] for one in (outcomes[0], *outcomes[1]))
    assert alone["losses"][-1] < alone["losses"][0]
    for found in pair:
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert max(found["num_parameters"][0] for found in pair) < 0.6 * alone["num_parameters"][0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_control_gradients_that_are_averaged_are_seen(outcomes, optimizer):
    alone, pair = outcomes[0][f"{optimizer} sums"], [one[f"{optimizer} means"] for one in outcomes[1]]
    for found in pair:
        assert found["losses"][-1] != pytest.approx(alone["losses"][-1], rel=1e-5)
