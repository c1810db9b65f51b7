"""The figures of a comparison, against sums done by hand and by plain numpy."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up import base_losses, losses, result, runs_of, sweep

from llmtune.comparison.compare import compare
from llmtune.comparison.outcome import Comparison, MissingRun, Row
from llmtune.comparison.results import RunCost
from llmtune.comparison.statistics import Cells, estimate, holm
from llmtune.config.compare import CompareConfig

pytestmark = pytest.mark.fast

GAINS = {"full": 1.0, "lora": 0.98, "qlora": 0.5}


def compared(results, **settings: Any) -> Comparison:
    return compare(results, CompareConfig(**settings), "a sweep")


def row(found: Comparison, name: str) -> Row:
    return next(row for row in found.rows if row.name == name)


def test_the_mean_weighs_every_token_alike() -> None:
    tuned = losses([10.0, 60.0, 30.0], num_tokens=np.array([10, 20, 20]), num_bytes=np.array([50, 50, 50]))
    base = losses([20.0, 80.0, 50.0], num_tokens=np.array([10, 20, 20]), num_bytes=np.array([50, 50, 50]))
    found = compared([result(tuned, base=base)])
    assert found.rows[0].name == "base model" and found.rows[0].is_base
    assert found.rows[0].loss.value == pytest.approx(150 / 50)
    assert found.rows[0].loss.basis == "no seeds"
    assert found.rows[1].loss.value == pytest.approx(100 / 50)
    assert found.rows[1].loss.basis == "examples"
    assert found.rows[1].gain is not None and found.rows[1].gain.value == pytest.approx(50 / 50)
    assert found.rows[1].perplexity.value == pytest.approx(math.exp(2.0))
    assert (found.num_test_examples, found.num_test_tokens, found.num_clusters) == (3, 50, 3)


def test_perplexity_has_the_ends_of_the_loss() -> None:
    lora = row(compared(sweep(GAINS)), "lora")
    assert (lora.perplexity.low, lora.perplexity.high) == pytest.approx(
        (math.exp(lora.loss.low), math.exp(lora.loss.high))
    )


def test_a_row_is_the_mean_over_its_seeds() -> None:
    results = sweep({"lora": 0.98})
    lora = row(compared(results), "lora")
    assert lora.loss.value == pytest.approx(np.mean([run.tuned.loss_sums.sum() / 1200 for run in results]))
    assert (lora.loss.num_seeds, lora.loss.basis, lora.seeds) == (3, "seeds", (1, 2, 3))


def test_bits_per_byte_divide_by_the_bytes() -> None:
    tuned = losses([8.0, 12.0], num_tokens=np.array([4, 6]), num_bytes=np.array([20, 20]))
    others = [
        result(tuned, changes={"model.name": name}, digests={"tokenizer": name, "sources": "s"}) for name in ("a", "b")
    ]
    found = compared(others)
    assert found.metric == "bits_per_byte"
    assert row(found, "a").loss.value == pytest.approx(20 / math.log(2) / 40)
    assert row(found, "a").perplexity.value == pytest.approx(math.exp(20 / 10))


def test_examples_of_one_cluster_count_once() -> None:
    """Twins that stand together don't narrow the interval as independent examples do."""
    rng = np.random.default_rng(1)
    half = rng.normal(20, 5, 40)
    twins = np.concatenate([half, half])
    apart = losses(twins)
    together = losses(twins, clusters=np.array([f"c{index % 40}" for index in range(80)]))
    alone = losses(half)

    def width(found: Comparison) -> float:
        return found.rows[0].loss.high - found.rows[0].loss.low

    together_width = width(compared([result(together)]))
    assert together_width == pytest.approx(width(compared([result(alone)])), rel=1e-9)
    assert width(compared([result(apart)])) < 0.75 * together_width
    assert compared([result(together)]).num_clusters == 40


def test_the_coarsest_clusters_count_where_records_differ() -> None:
    coarse = np.array(["x"] * 60 + [f"y{index}" for index in range(60)])
    results = sweep({"lora": 0.9})
    results[2] = replace(results[2], tuned=replace(results[2].tuned, clusters=coarse))
    found = compared(results)
    assert found.num_clusters == 61
    assert row(found, "lora").loss.num_clusters == 61


def test_the_contrast_behind_a_standing_is_one_expression() -> None:
    results = sweep(GAINS)
    found = compared(results, margin=0.1)
    base = np.repeat(base_losses().loss_sums[None], 3, axis=0)
    by_method = {method: np.stack([run.tuned.loss_sums for run in results if run.method == method]) for method in GAINS}
    full = by_method["full"]
    contrasts = {
        method: estimate(Cells(sums=by_method[method] - full - 0.1 * (base - full), weights=np.full(120, 10.0)))
        for method in ("lora", "qlora")
    }
    adjusted = dict(zip(contrasts, holm([contrast.p_value for contrast in contrasts.values()]), strict=True))
    for method in contrasts:
        assert row(found, method).adjusted_p == pytest.approx(adjusted[method])
    difference = estimate(Cells(sums=by_method["lora"] - full, weights=np.full(120, 10.0)))
    to_full = row(found, "lora").to_full
    assert to_full is not None
    assert (to_full.value, to_full.low, to_full.p_value) == pytest.approx(
        (difference.value, difference.low, difference.p_value)
    )
    quality = row(found, "qlora").quality
    assert quality is not None
    assert quality.value == pytest.approx((base - by_method["qlora"]).sum() / (base - full).sum())
    assert [row(found, name).standing for name in ("full", "lora", "qlora")] == ["reference", "good enough", "worse"]
    assert found.margin == 0.1


@pytest.mark.parametrize("spread", [0.005, 0.02, 0.05])
def test_a_standing_agrees_with_the_interval_of_the_quality(spread) -> None:
    """With one method there is no correction, so the test and Fieller's interval are one."""
    seen = set()
    for gain in np.linspace(0.7, 1.1, 17):
        lora = row(compared(sweep({"full": 1.0, "lora": gain}, spread=spread)), "lora")
        assert lora.quality is not None
        if lora.standing == "good enough":
            assert lora.quality.low > 0.95
        elif lora.standing == "worse":
            assert lora.quality.high < 0.95
        else:
            assert lora.standing == "undecided"
            assert lora.quality.low <= 0.95 <= lora.quality.high
            assert lora.would_decide is not None and lora.would_decide.startswith(("about ", "neither "))
        seen.add(lora.standing)
    assert {"undecided"} < seen


def test_two_seeds_are_few() -> None:
    found = compared(sweep(GAINS, (1, 2)))
    assert row(found, "lora").loss.basis == "few seeds"
    assert row(found, "qlora").standing == "worse"


def test_one_seed_claims_nothing() -> None:
    found = compared(sweep(GAINS, (1,)))
    for name in ("lora", "qlora"):
        assert (row(found, name).standing, row(found, name).quality) == ("no claim", None)
        assert row(found, name).to_full is not None
    assert len(found.pairs) == 3
    assert all(pair.lower is None for pair in found.pairs)
    assert min(pair.adjusted_p for pair in found.pairs) < 1e-6  # which would be a claim with more seeds


def test_nothing_is_a_share_of_no_gain() -> None:
    found = compared(sweep({"full": 0.0, "lora": 0.5}))
    assert row(found, "full").standing == "reference"
    assert (row(found, "lora").standing, row(found, "lora").quality) == ("no claim", None)
    assert [pair.lower for pair in found.pairs] == ["lora"]
    worse = compared(sweep({"full": -0.5, "lora": 0.5}))
    assert row(worse, "lora").standing == "no claim"


def test_without_a_base_there_is_no_gain_to_share() -> None:
    results = [replace(run, base=None) for run in sweep(GAINS)]
    found = compared(results)
    assert not any(row.is_base for row in found.rows)
    assert row(found, "lora").gain is None
    assert row(found, "lora").standing == "no claim"
    assert len(found.pairs) == 3


def test_a_base_measured_by_one_run_serves_all() -> None:
    results = sweep(GAINS)
    results = [results[0], *(replace(run, base=None) for run in results[1:])]
    found = compared(results)
    assert row(found, "lora").standing == "good enough"
    assert row(found, "qlora").gain is not None


def test_an_untrained_run_is_a_base_row() -> None:
    base = base_losses()
    untrained = result(base, "lora", changes={"method.name": "none"}, base=base)
    object.__setattr__(untrained, "method", "none")
    results = [replace(run, base=None) for run in sweep(GAINS)]
    found = compared([untrained, *results])
    assert [row.name for row in found.rows if row.is_base] == ["base model"]
    assert row(found, "lora").standing == "good enough"


def test_untrained_models_alone_are_shown() -> None:
    runs = []
    for name in ("a", "b"):
        run = result(base_losses(), changes={"model.name": name})
        object.__setattr__(run, "method", "none")
        runs.append(run)
    found = compared(runs)
    assert [row.name for row in found.rows] == ["base model (a)", "base model (b)"]
    assert found.verdict == "There is nothing to compare: no trained run has measured its weights."


def test_pairs_are_on_the_seeds_that_both_have() -> None:
    results = [run for run in sweep(GAINS) if (run.method, run.seed) != ("qlora", 2)]
    found = compared(results)
    pair = next(pair for pair in found.pairs if {pair.first, pair.second} == {"full", "qlora"})
    sums = {
        method: np.stack([run.tuned.loss_sums for run in results if run.method == method and run.seed in (1, 3)])
        for method in ("full", "qlora")
    }
    expected = (sums["full"] - sums["qlora"]).sum() / 2 / 1200
    assert pair.difference.value == pytest.approx(expected if pair.first == "full" else -expected)
    assert pair.difference.num_seeds == 2
    assert row(found, "qlora").loss.num_seeds == 2
    assert any(note.startswith("Seed 2 missing for qlora") for note in found.notes)


def test_settings_without_a_common_seed_are_not_compared() -> None:
    results = [
        run for run in sweep({"full": 1.0, "lora": 0.98}, (1, 2, 3, 4)) if (run.method == "full") == (run.seed < 3)
    ]
    found = compared(results)
    assert found.pairs == []
    assert (row(found, "lora").standing, row(found, "lora").to_full) == ("no claim", None)
    assert "lora and full have no seed in common, so they can't be compared." in found.notes


def test_pairs_are_corrected_together_and_claimed_from_two_seeds_on() -> None:
    found = compared(sweep(GAINS))
    raw = [pair.difference.p_value for pair in found.pairs]
    assert [pair.adjusted_p for pair in found.pairs] == pytest.approx(holm(raw))
    by_rows = {frozenset((pair.first, pair.second)): pair.lower for pair in found.pairs}
    assert by_rows[frozenset(("full", "qlora"))] == "full"
    assert by_rows[frozenset(("lora", "qlora"))] == "lora"
    assert by_rows[frozenset(("full", "lora"))] is None


def rates(losses_by_rate: dict[tuple[str, float], tuple[float, float | None]], seeds=(1, 2, 3)):
    """Runs of (method, learning rate) with (gain, validation loss)."""
    return [
        run
        for (method, rate), (gain, validation) in losses_by_rate.items()
        for run in runs_of(
            method,
            gain,
            seeds,
            name=f"{method}{rate}",
            changes={"train.learning_rate": rate},
            validation_loss=validation,
        )
    ]


SEARCHED = {
    ("full", 1e-5): (0.9, 2.0),
    ("full", 2e-5): (1.0, 2.1),
    ("lora", 1e-4): (0.80, 2.3),
    ("lora", 2e-4): (0.87, 2.2),
}


def test_the_lowest_validation_loss_stands_for_a_method() -> None:
    found = compared(rates(SEARCHED))
    chosen = {row.name for row in found.rows if row.is_chosen}
    # full's other rate is better on the test set, which a choice may not look at.
    assert chosen == {"full learning_rate=1e-05", "lora learning_rate=0.0002"}
    assert row(found, "full learning_rate=1e-05").standing == "reference"
    assert row(found, "lora learning_rate=0.0002").standing is not None
    assert row(found, "lora learning_rate=0.0001").standing is None
    assert row(found, "full learning_rate=2e-05").standing is None


def test_a_choice_at_the_border_of_what_was_tried_is_noted() -> None:
    found = compared(rates({**SEARCHED, ("full", 5e-6): (0.8, 2.4)}))
    assert [note for note in found.notes if "was tried" in note] == [
        "lora's chosen learning rate, 0.0002, is the highest that was tried; a higher may be better."
    ]


def test_without_a_validation_loss_none_is_chosen() -> None:
    found = compared(rates({**SEARCHED, ("full", 2e-5): (1.0, None)}))
    assert all(row.standing is None for row in found.rows)
    assert [row.name for row in found.rows if row.is_chosen] == ["lora learning_rate=0.0002"]
    assert (
        "The 2 settings of full have no validation loss on every seed, so none can be chosen to stand for it without "
        "looking at the test set."
    ) in found.notes
    assert len(found.pairs) == 6


@pytest.mark.parametrize("apart", [True, False])
def test_of_settings_without_a_common_seed_none_is_chosen(apart) -> None:
    results = [
        run
        for rate, seeds in ((1e-4, (1, 2)), (2e-4, (3, 4) if apart else (1, 2)))
        for run in rates({("lora", rate): (0.9, 2.0 + rate)}, seeds)
    ]
    found = compared(results)
    assert sum(row.is_chosen for row in found.rows) == (0 if apart else 1)
    assert len(found.pairs) == (0 if apart else 1)
    assert ("lowest" in found.verdict) != apart
    assert found.verdict.startswith("No row can be chosen: they have no seed in common") == apart
    assert not any("missing" in note for note in found.notes)


def test_of_methods_without_a_common_seed_none_is_chosen() -> None:
    results = [
        run for run in sweep({"lora": 1.0, "qlora": 0.5}, (1, 2, 3, 4)) if (run.method == "lora") == (run.seed < 3)
    ]
    found = compared(results)
    assert found.pairs == []
    assert "no row can be chosen: they have no seed in common" in found.verdict and "lowest" not in found.verdict


def test_groups_are_judged_by_themselves_and_corrected_by_themselves() -> None:
    results = [
        run
        for number in (100, 1000)
        for method, gain in {"full": 1.0, "lora": 0.98 if number == 1000 else 0.5}.items()
        for run in runs_of(
            method,
            gain * (1 if number == 1000 else 0.8),
            name=f"{method}{number}",
            changes={"data.num_examples": number},
            digests={"tokenizer": "t", "base": "b", "train": str(number)},
        )
    ]
    found = compared(results)
    assert [row.name for row in found.rows] == [
        *("base model", "full num_examples=100", "lora num_examples=100"),
        *("full num_examples=1000", "lora num_examples=1000"),
    ]
    assert row(found, "lora num_examples=100").standing == "worse"
    assert row(found, "lora num_examples=1000").standing == "good enough"
    within = [pair for pair in found.pairs if pair.first.partition(" ")[2] == pair.second.partition(" ")[2]]
    assert len(within) == 2 and len(found.pairs) == 4
    for pair in within:
        assert pair.adjusted_p == pytest.approx(pair.difference.p_value)
    across = [pair for pair in found.pairs if pair not in within]
    assert all(pair.first.split()[0] == pair.second.split()[0] for pair in across)
    assert [pair.adjusted_p for pair in across] == pytest.approx(holm([pair.difference.p_value for pair in across]))


def test_forgetting_is_measured_on_general_text() -> None:
    general_base = losses(np.full(30, 20.0) + np.arange(30), num_tokens=np.full(30, 10))
    results = [
        replace(
            run,
            general_base=general_base if run.seed == 1 else None,
            general_tuned=losses(general_base.loss_sums + 1.0 + 0.1 * run.seed + 0.01 * (np.arange(30) % 3)),
        )
        for run in sweep({"lora": 0.9})
    ]
    lora = row(compared(results), "lora")
    assert lora.forgetting is not None
    assert lora.forgetting.value == pytest.approx((1.2 + 0.01) / 10)
    assert lora.forgetting.low > 0
    results[1] = replace(results[1], general_tuned=None)
    assert row(compared(results), "lora").forgetting is None


def test_costs_are_means_and_time_has_a_price() -> None:
    costs = [
        RunCost(num_trainable=36, peak_memory_gib=1.0, train_seconds=1800.0, tokens_per_second=100.0, device="A"),
        RunCost(num_trainable=36, peak_memory_gib=2.0, train_seconds=5400.0, tokens_per_second=None, device="A"),
    ]
    results = [replace(run, cost=cost) for run, cost in zip(sweep({"lora": 0.9}, (1, 2)), costs, strict=True)]
    lora = row(compared(results, price_per_hour=2.5), "lora")
    assert lora.cost == RunCost(
        num_trainable=36, peak_memory_gib=1.5, train_seconds=3600.0, tokens_per_second=100.0, device="A"
    )
    assert lora.price == 2.5
    assert row(compared(results), "lora").price is None
    results[1] = replace(results[1], cost=replace(costs[1], device="B"))
    assert row(compared(results), "lora").cost.device == "several devices"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_diverged_run_is_shown_and_never_wins(bad, method) -> None:
    results = sweep(GAINS)
    for run in results:
        if run.method == method and run.seed == 2:
            run.tuned.loss_sums[3] = bad
    found = compared(results, price_per_hour=1.0)
    assert [row.name for row in found.rows][-1] == method
    assert row(found, method).standing == ("reference" if method == "full" else "no claim")
    assert all(pair.lower != method for pair in found.pairs)
    assert any(note.startswith(f"{method} has a test loss that isn't finite (seed 2)") for note in found.notes)
    assert "isn't finite" in found.verdict
    other = "lora" if method == "full" else "full"
    assert any(pair.lower == other for pair in found.pairs)
    if method == "lora":
        assert row(found, "qlora").standing == "worse"


def test_a_single_example_says_nothing_but_its_loss() -> None:
    found = compared([result(losses([20.0]), base=losses([30.0])), result(losses([10.0]), "full", base=losses([30.0]))])
    assert row(found, "lora").loss.value == 2.0
    assert math.isnan(row(found, "lora").loss.low)
    assert row(found, "lora").standing == "no claim"


def test_no_runs_are_no_rows() -> None:
    missing = [MissingRun(name="lora", status="FAILED", error="out of memory")]
    found = compare([], CompareConfig(), "a sweep", missing)
    assert found.rows == [] and found.missing == missing
    assert found.verdict.startswith("There is nothing to compare: no trained run has measured its weights.")


def test_records_that_know_other_clusters_are_compared_though_nothing_is_ranked() -> None:
    """Older records have a cluster an example; the base of one then stands beside the runs of another."""
    coarse = np.array([f"c{index % 10}" for index in range(120)])
    results = sweep({"full": 1.0, "lora": 0.9}, num_test_seen=1)
    old = [replace(run, base=None) for run in results[1:]]
    new = replace(results[0], base=replace(base_losses(), clusters=coarse))
    found = compared([new, *old])
    assert len(found.unfair) == 1
    assert row(found, "lora").gain is not None and row(found, "lora").loss.num_clusters == 10
