"""A model whose weights are sharded over two processes (FSDP2) trains as a whole one."""

from pathlib import Path

import pytest
import torch
from sharded_worker import train_in_every_way
from two_workers import run_two

WORKER = Path(__file__).parent / "sharded_worker.py"


@pytest.fixture(scope="module")
def outcomes(tiny_llama, tmp_path_factory):
    """What one process and two make of it."""
    torch.set_num_threads(1)
    return train_in_every_way(tiny_llama), run_two(WORKER, tiny_llama, tmp_path_factory.mktemp("sharded"))


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
