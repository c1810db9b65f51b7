"""Two processes train as one: the same losses, and equal weights in both."""

import json
from pathlib import Path

import pytest
import torch
from two_process_worker import go_on, train_and_evaluate
from two_workers import run_two

WORKER = Path(__file__).parent / "two_process_worker.py"
BEGUN = Path("lora", "checkpoints", "checkpoint-20")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where one and two processes write."""
    place = tmp_path_factory.mktemp("processes")
    return {1: place / "one", 2: place / "two"}


@pytest.fixture(scope="module")
def alone(tiny_llama, folders):
    """What one process makes of it: this one."""
    torch.set_num_threads(1)
    return json.loads(json.dumps(train_and_evaluate(tiny_llama, folders[1])))


@pytest.fixture(scope="module")
def pair(tiny_llama, folders, alone):
    """What two processes make of it, and of a checkpoint that one has saved."""
    folders[2].mkdir()
    return run_two(WORKER, tiny_llama, folders[2], folders[1] / BEGUN)


NUM_STEPS = {"lora": 50, "full": 10, "padded": 10, "whole logits": 10, "unsupervised": 10, "idle": 10, "tokens": 13}


@pytest.mark.parametrize("way", NUM_STEPS)
def test_two_processes_give_the_losses_of_one(alone, pair, way):
    expected, first, second = alone[way], pair[0][way], pair[1][way]
    assert len(expected["steps"]) == NUM_STEPS[way]
    for step, (loss, grad_norm) in expected["steps"].items():
        assert first["steps"][step][0] == pytest.approx(loss, rel=1e-5)
        assert first["steps"][step][1] == pytest.approx(grad_norm, rel=1e-4)
    assert first["steps"] == second["steps"]
    assert first["weights"] == second["weights"]
    if way == "tokens":
        assert min(first["num_micro_batches"] + second["num_micro_batches"]) > 0, "both share each of those steps"
    else:
        assert second["num_micro_batches"][-1] == 0, "the last step leaves one process without a micro-batch"
    if way == "unsupervised":
        shares = list(zip(first["num_supervised"], second["num_supervised"], strict=True))
        assert any(one == 0 < other or other == 0 < one for one, other in shares)
        assert (0, 0) in shares


def test_a_parameter_without_a_gradient_is_left_alone_as_with_one_process(alone, pair):
    shares = list(zip(pair[0]["idle"]["has_token"], pair[1]["idle"]["has_token"], strict=True))
    assert (False, False) in shares
    assert (True, False) in shares or (False, True) in shares
    expected = alone["idle"]["added"]
    assert expected["never"] == [1.0, 1.0]
    assert min(expected["of_token"]) < 0.999
    for found in pair:
        assert found["idle"]["added"]["never"] == [1.0, 1.0]
        assert found["idle"]["added"]["of_token"] == pytest.approx(expected["of_token"], rel=1e-5)


def test_control_zeros_instead_of_no_gradient_are_seen(alone, pair):
    expected = alone["idle"]["added"]
    for found in (one["zeros for all"]["added"] for one in pair):
        assert max(found["never"]) < 0.999
        assert found["of_token"] != pytest.approx(expected["of_token"], rel=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(tiny_llama, folders, alone, pair, count):
    if count == 2:
        stayed, gone_on = alone, pair[0]["gone on"]
    else:
        stayed, gone_on = pair[0], json.loads(json.dumps(go_on(tiny_llama, folders[2] / BEGUN)))
    assert len(gone_on["steps"]) == 30
    for step, (loss, _) in gone_on["steps"].items():
        assert loss == pytest.approx(stayed["lora"]["steps"][step][0], rel=1e-5)


def test_processes_share_an_evaluation_and_count_each_example_once(alone, pair):
    for count, expected in alone["evaluation"].items():
        for found in (one["evaluation"][count] for one in pair):
            assert found["num_examples"] == int(count) == len(found["loss_sums"])
            assert found["num_supervised_tokens"] == expected["num_supervised_tokens"]
            for name in ("loss", "perplexity", "bits_per_byte", "loss_sums"):
                assert found[name] == pytest.approx(expected[name], rel=1e-12)


def test_control_an_evaluation_that_is_not_added_up_is_seen(alone, pair):
    expected = alone["evaluation"]["33"]["loss_sums"]
    for found in (one["not added up"]["33"]["loss_sums"] for one in pair):
        assert found != pytest.approx(expected, rel=1e-3)


def test_control_without_the_exchange_of_gradients_they_part(alone, pair):
    expected, first, second = alone["lora"], pair[0]["no exchange"], pair[1]["no exchange"]
    assert first["weights"] != second["weights"]
    assert first["steps"]["10"][0] != pytest.approx(expected["steps"]["10"][0], rel=1e-5)


def test_the_first_process_decides_and_writes_for_both(pair, folders):
    assert pair[0]["lora"]["best"] == pair[1]["lora"]["best"] == 1.0, "its validation loss counts in both"
    names = {path.name for path in (folders[2] / "lora" / "checkpoints").iterdir()}
    assert names == {*(f"checkpoint-{step}" for step in (*range(4, 50, 4), 50)), "checkpoint-best", "checkpoint-final"}
