"""What weakens a comparison: each note by itself, and none where there is nothing to note."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up import losses, result, sweep

from llmtune.comparison.compare import compare
from llmtune.comparison.results import RunCost
from llmtune.config.compare import CompareConfig

pytestmark = pytest.mark.fast

GAINS = {"full": 1.0, "lora": 0.98}


def notes(results) -> list[str]:
    found = compare(results, CompareConfig(), "a sweep")
    assert found.unfair == []
    return list(found.notes)


def with_lora(**fields: Any):
    return [replace(run, **fields) if run.method == "lora" else run for run in sweep(GAINS)]


def test_nothing_is_noted_of_alike_runs() -> None:
    assert notes(sweep(GAINS)) == []


def test_other_versions() -> None:
    assert notes(with_lora(versions={"llmtune": "0.1.0", "torch": "2.12.0"})) == [
        "The runs were made with several versions of torch (2.12.0 and 2.13.0): that may move losses."
    ]


def test_another_device() -> None:
    cost = RunCost(device="H200", num_devices=2)
    results = [
        run if run.method == "lora" else replace(run, cost=RunCost(device="CPU")) for run in with_lora(cost=cost)
    ]
    assert notes(results) == [
        "The runs were trained on other devices (1 x CPU and 2 x H200): times and memory don't compare."
    ]


@pytest.mark.parametrize(("choice", "value"), [("precision", "bf16"), ("attention", "sdpa")])
def test_another_way_to_compute(choice, value) -> None:
    choices = {"device_name": "CPU", "precision": "fp32", "attention": "varlen", choice: value}
    (note,) = notes(with_lora(choices=choices))
    assert note.startswith(f"The runs were trained with another {choice} (") and value in note
    assert note.endswith("): times and memory don't compare.")


def test_losses_computed_in_another_precision() -> None:
    results = [
        replace(run, choices={**run.choices, "evaluate_precision": "bf16" if run.method == "lora" else "fp32"})
        for run in sweep(GAINS)
    ]
    assert notes(results) == [
        "The test losses were computed in other precisions (bf16 and fp32), which moves them a little."
    ]


@pytest.mark.parametrize(("device", "noted"), [("cpu", True), ("cuda:0", False)])
def test_other_numbers_of_threads(device, noted) -> None:
    results = [
        replace(run, choices={**run.choices, "device": device, "num_threads": 1 if run.method == "lora" else 2})
        for run in sweep(GAINS)
    ]
    sentence = "The runs were trained with other numbers of CPU threads (1 and 2): times don't compare."
    assert notes(results) == ([sentence] if noted else [])


def test_threads_that_a_sweep_varies_are_not_noted() -> None:
    results = [
        replace(
            run,
            choices={**run.choices, "device": "cpu", "num_threads": number},
            config={**run.config, "hardware.num_threads": number},
        )
        for number in (1, 2)
        for run in sweep({"lora": 0.9})
    ]
    assert notes(results) == []


@pytest.mark.parametrize(("number", "noted"), [(19, True), (20, False)])
def test_few_test_examples(number, noted) -> None:
    found = notes(sweep({"lora": 0.9}, num_examples=number))
    assert found == (
        ["There are only 19 test examples: the intervals say little about others. Take 100 or more."] if noted else []
    )


@pytest.mark.parametrize(("number", "noted"), [(19, True), (20, False)])
def test_few_groups_of_test_examples(number, noted) -> None:
    clusters = np.array([f"document{place % number}" for place in range(120)])
    results = [replace(run, tuned=replace(run.tuned, clusters=clusters)) for run in sweep(GAINS)]
    sentence = (
        "The test examples belong to only 19 independent groups, such as documents: the intervals say little about "
        "others. Take 100 or more."
    )
    assert notes(results) == ([sentence] if noted else [])


def test_missing_seeds() -> None:
    results = [run for run in sweep({**GAINS, "qlora": 0.5}) if run.method == "full" or run.seed == 1]
    assert notes(results) == [
        "Seeds 2 and 3 missing for lora and qlora: two settings are compared on the seeds that both have."
    ]


def test_seeds_of_rows_that_share_none_are_not_missing() -> None:
    results = [run for run in sweep(GAINS, (1, 2, 3, 4)) if (run.method == "full") == (run.seed < 3)]
    assert notes(results) == ["lora and full have no seed in common, so they can't be compared."]
    beside = [run for run in sweep({**GAINS, "qlora": 0.5}) if (run.method == "qlora") == (run.seed == 3)]
    assert not any("missing" in note for note in notes(beside))


def test_no_base() -> None:
    assert notes([replace(run, base=None) for run in sweep(GAINS)]) == [
        "The base model wasn't measured, so it can't be said what training gained; leave evaluate.base=true."
    ]


@pytest.mark.parametrize(("apart", "noted"), [(0.5e-4, False), (2e-4, True)])
def test_a_base_that_came_out_twice(apart, noted) -> None:
    results = []
    for run in sweep({"lora": 0.9}):
        assert run.base is not None
        shift = 10 * apart if run.seed == 2 else 0.0
        results.append(replace(run, base=replace(run.base, loss_sums=run.base.loss_sums + shift)))
    found = notes(results)
    assert len(found) == noted
    if noted:
        assert found[0].startswith("The loss of the base model was measured as 2.9268 and as 2.9270 by runs of")


def test_unknown_training_examples() -> None:
    assert notes(with_lora(digests={"base": "b" * 64, "tokenizer": "t" * 64})) == [
        "What lora was trained on isn't recorded, so it can't be checked that it was the same."
    ]


def test_unknown_whether_the_test_set_was_seen() -> None:
    assert notes(with_lora(num_test_seen=None)) == [
        "Whether test examples also stand in what lora learnt from can't be checked. Measure again on a file that is "
        "new to all runs: python -m llmtune evaluate run=RUN data.eval_path=FILE."
    ]


def test_infinite_base_losses_are_no_crash() -> None:
    base = losses([float("inf"), 1.0, 2.0])
    runs = [result(losses([1.0, 2.0, 3.0]), seed=seed, base=base) for seed in (1, 2)]
    assert len(notes(runs)) == 1  # of the few examples alone
