"""The verdict's sentences, word by word, on rows with chosen figures."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up import losses, result

from llmtune.comparison.outcome import Comparison, MissingRun, Pair, Row
from llmtune.comparison.ranking import UNREACHABLE
from llmtune.comparison.results import RunCost
from llmtune.comparison.statistics import Basis, Estimate, Interval
from llmtune.comparison.verdict import verdict

pytestmark = pytest.mark.fast

FULL_COST = RunCost(num_trainable=1000, peak_memory_gib=2.0, train_seconds=100.0, device="CPU")
LORA_COST = RunCost(num_trainable=36, peak_memory_gib=1.8, train_seconds=101.0, device="CPU")
GAIN, LOSS = (1.0, 0.01), (2.0, 0.015)
COSTS = "0.90 of the memory and 1.01 times the training time"
NO_CLAIM = "One seed says nothing about luck: no claim; run seed=1,2,3."


def estimate(value: float, half: float, seeds: int = 3, *, p_value: float | None = None) -> Estimate:
    basis: Basis = "examples" if seeds == 1 else "few seeds" if seeds == 2 else "seeds"
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        standard_error=half / 3,
        degrees_of_freedom=4.0,
        p_value=p_value if p_value is not None else 0.001 if abs(value) > half else 0.5,
        num_seeds=seeds,
        num_clusters=100,
        basis=basis,
    )


def row(method: str, seeds: int = 3, **fields: Any) -> Row:
    """A row; `loss`, `gain`, `to_full`, `forgetting` as (value, half the interval), `quality` as three numbers.

    `changes` are config keys of its runs.
    """
    values = fields.pop("values", {"method.name": method})
    for name in ("loss", "gain", "to_full", "forgetting"):
        given = fields.get(name, {"loss": LOSS, "gain": GAIN}.get(name))
        fields[name] = estimate(*given, seeds) if isinstance(given, tuple) else given
    if "quality" in fields:
        value, low, high = fields["quality"]
        fields["quality"] = Interval(value=value, low=low, high=high)
    changes = dict(fields.pop("changes", {}))
    if "rate" in fields:
        changes["train.learning_rate"] = fields.pop("rate")
    numbers = fields.pop("numbers", range(1, seeds + 1))
    standard = {
        "name": method,
        "group": {key: value for key, value in values.items() if key.startswith(("model.", "data."))},
        "runs": tuple(result(losses([1.0]), method, seed, changes=changes) for seed in numbers),
        "perplexity": Interval(value=7.4, low=7.3, high=7.5),
        "is_chosen": True,
        "cost": FULL_COST if method == "full" else LORA_COST,
    }
    return Row(**{**standard, **fields, "values": values, "method": method})


def pair(first: str, second: str, difference: tuple[float, float], lower: str | None = None, seeds: int = 3) -> Pair:
    return Pair(first=first, second=second, difference=estimate(*difference, seeds), adjusted_p=0.01, lower=lower)


def verdict_on(rows: Sequence[Row], pairs: Sequence[Pair] = (), **fields: Any) -> str:
    standard = {"title": "x", "metric": "loss", "axes": ("method.name",), "rows": rows, "pairs": pairs}
    return verdict(Comparison(**{**standard, **fields}))


FULL = row("full", standing="reference")
GOOD = row("lora", standing="good enough", quality=(0.972, 0.958, 0.986), to_full=(0.028, 0.014))
WORSE = row("qlora", standing="worse", quality=(0.43, 0.4, 0.46), to_full=(0.57, 0.03))


def test_good_enough_and_worse() -> None:
    assert verdict_on([FULL, WORSE, GOOD]) == (
        "At default settings, take lora. lora is good enough: it has 97.2 % of full's gain (95 % interval 95.8 to "
        f"98.6 %), with 3.6 % of the trainable parameters, {COSTS}. qlora is worse: 43 % (40 to 46 %), with {COSTS}."
    )


def test_where_all_others_are_worse_full_is_to_be_taken() -> None:
    assert verdict_on([FULL, WORSE]) == (
        f"At default settings, take full. qlora is worse: 43 % of full's gain (95 % interval 40 to 46 %), with {COSTS}."
    )


def better(low: float = 1.02) -> Row:
    return row("lora", standing="good enough", quality=(1.04, low, 1.06), to_full=(-0.04, 0.02))


@pytest.mark.parametrize(
    ("lora", "lower", "how"),
    [
        (better(), "lora", "better than full"),
        (better(1.0), "lora", "good enough"),
        (better(0.99), "lora", "good enough"),
        (better(), None, "good enough"),  # among several pairs it can't be claimed
    ],
)
def test_better_than_full_is_said_where_it_is_sure(lora: Row, lower: str | None, how: str) -> None:
    """In a sweep of one model, and in a group of several, whose rows have shorter names in the sentences."""
    pairs = [pair("lora", "full", (-0.04, 0.02), lower)]
    assert f"take lora. lora is {how}: it has 104" in verdict_on([FULL, lora], pairs)
    rows = [
        replace(
            one, name=f"{one.name} {model}", values={"model.name": model, **one.values}, group={"model.name": model}
        )
        for model in ("a", "b")
        for one in (FULL, lora)
    ]
    of_each = [
        pair(f"lora {model}", f"full {model}", (-0.04, 0.02), lower and f"{lower} {model}") for model in ("a", "b")
    ]
    assert verdict_on(rows, of_each).count(f"take lora. lora is {how}: it has 104") == 2


@pytest.mark.parametrize(
    ("memory", "seconds", "is_taken"), [(1.8, 101, True), (2.0, 80, True), (1.8, 120, False), (2.0, 100, False)]
)
def test_one_that_is_good_enough_is_to_be_taken_where_nothing_speaks_for_full(memory, seconds, is_taken) -> None:
    cost = RunCost(num_trainable=36, peak_memory_gib=memory, train_seconds=seconds, device="CPU")
    good = row("lora", standing="good enough", quality=(0.97, 0.96, 0.98), to_full=(0.03, 0.01), cost=cost)
    assert verdict_on([FULL, good]).startswith("At default settings, take lora. ") == is_taken


def test_undecided_says_what_would_decide() -> None:
    lora = row("lora", standing="undecided", quality=(0.94, 0.88, 1.01), would_decide="about 4 more seeds")
    assert verdict_on([FULL, lora]) == (
        "At default settings, lora is undecided: 94 % of full's gain (95 % interval 88 to 101 %), with "
        f"{COSTS}; about 4 more seeds may decide it."
    )


def test_undecided_though_its_own_interval_is_clear() -> None:
    """The correction for several methods keeps the claim back, and that is said."""
    lora = row("lora", standing="undecided", quality=(0.8, 0.7, 0.9), would_decide="about 1 more seed")
    assert verdict_on([FULL, lora]) == (
        "At default settings, lora is undecided: 80 % of full's gain (95 % interval 70 to 90 %), with "
        f"{COSTS}; not sure enough with several methods judged at once; about 1 more seed may decide it."
    )


def test_two_seeds_are_weak() -> None:
    good = row("lora", 2, standing="good enough", quality=(0.972, 0.958, 0.986), to_full=(0.03, 0.01), cost=RunCost())
    worse = row("qlora", 2, standing="worse", quality=(0.43, 0.4, 0.46), to_full=(0.57, 0.03))
    assert verdict_on([row("full", 2, standing="reference"), good, worse]) == (
        "At default settings, lora is good enough (weak: 2 seeds): it has 97.2 % of full's gain (95 % interval 95.8 to "
        "98.6 %). qlora is worse (weak: 2 seeds): 43 % (40 to 46 %), with "
        f"{COSTS}."
    )


def test_one_seed() -> None:
    lora = row("lora", 1, standing="no claim", to_full=(0.003, 0.02))
    qlora = row("qlora", 1, standing="no claim", to_full=(-0.49, 0.02))
    assert verdict_on([row("full", 1, standing="reference"), lora, qlora]) == (
        "At default settings, on these examples and this seed lora's loss is 0.003 nats per token above full's, "
        f"qlora's 0.490 below. Against full, lora takes {COSTS}; qlora takes {COSTS}. {NO_CLAIM}"
    )


def test_full_without_a_gain() -> None:
    full = row("full", standing="reference", gain=(-0.008, 0.012))
    lora = row("lora", standing="no claim", to_full=(-0.5, 0.02))
    qlora = row("qlora", standing="no claim", to_full=(0.001, 0.02), gain=(-0.2, 0.1), is_worse_than_base=True)
    pairs = [pair("lora", "full", (-0.5, 0.02), "lora"), pair("qlora", "full", (0.001, 0.02))]
    assert verdict_on([full, lora, qlora], pairs) == (
        "At default settings, full itself has no clear gain over the base model (−0.008 nats per token, 95 % interval "
        "−0.020 to 0.004), so it can't be said what share of it another method keeps. lora's loss is 0.500 nats per "
        f"token below full's. qlora and full can't be told apart. Against full, lora takes {COSTS}; qlora takes "
        f"{COSTS}. After training qlora is worse than the base model."
    )


def test_of_several_good_ones_the_cheapest() -> None:
    cheap = RunCost(num_trainable=36, peak_memory_gib=1.0, train_seconds=150.0, device="CPU")
    qlora = row("qlora", standing="good enough", quality=(0.96, 0.951, 0.97), cost=cheap)
    found = verdict_on([FULL, GOOD, qlora])
    assert found.endswith("Of those that are good enough, qlora needs the least memory and lora needs the least time.")
    best = row(
        "qlora", standing="good enough", quality=(0.96, 0.951, 0.97), cost=RunCost(peak_memory_gib=1.0, device="CPU")
    )
    assert verdict_on([FULL, GOOD, best]).endswith("Of those that are good enough, qlora needs the least memory.")
    alike = row("qlora", standing="good enough", quality=(0.96, 0.951, 0.97))
    assert "Of those" not in verdict_on([FULL, GOOD, alike])


def test_times_of_other_devices_are_not_set_beside_each_other() -> None:
    cost = RunCost(num_trainable=36, peak_memory_gib=1.8, train_seconds=10.0, device="H200")
    lora = row("lora", standing="good enough", quality=(0.972, 0.958, 0.986), cost=cost)
    assert verdict_on([FULL, lora]).endswith("98.6 %), with 3.6 % of the trainable parameters.")


@pytest.mark.parametrize(
    ("rows", "begins"),
    [
        ([FULL, row("lora", standing="good enough", quality=(1, 0.96, 1.1), rate=5e-4)], "At the settings given, lora"),
        (
            [
                row("full", standing="reference", values={"method.name": "full", "data.num_examples": 5}),
                row(
                    "lora",
                    standing="worse",
                    quality=(0.5, 0.4, 0.6),
                    values={"method.name": "lora", "data.num_examples": 5},
                ),
            ],
            "At default settings, lora",
        ),
        (
            [
                FULL,
                row(
                    *("lora",),
                    name="lora rank=8",
                    standing="worse",
                    quality=(0.5, 0.4, 0.6),
                    values={"method.name": "lora", "method.rank": 8},
                ),
            ],
            "At the settings given, lora rank=8",
        ),
    ],
)
def test_it_begins_with_the_settings(rows, begins) -> None:
    assert verdict_on(rows).startswith(begins)


def searched(
    method: str, numbers: Sequence[float], key: str = "train.learning_rate", *, chosen: bool = True, **more: Any
) -> list[Row]:
    """A row for each value of a key, the first chosen."""
    found = []
    for place, number in enumerate(numbers):
        fields: dict[str, Any] = {"values": {"method.name": method, key: number}, "name": f"{method} {number}", **more}
        if key == "train.learning_rate":
            fields["rate"] = number
        if place == 0 and chosen and method == "full":
            fields["standing"] = "reference"
        elif place == 0 and chosen:
            fields |= {"standing": "worse", "quality": (0.5, 0.4, 0.6)}
        found.append(row(method, **fields, is_chosen=chosen and place == 0))
    return found


@pytest.mark.parametrize(
    ("rows", "begins"),
    [
        (
            [*searched("full", (1, 2)), *searched("lora", (3, 4))],
            "With each method's learning rate chosen among 2 on validation, lora 3 is worse",
        ),
        (
            [*searched("full", (1, 2), "train.num_epochs"), *searched("lora", (1, 2), "train.num_epochs")],
            "With each method's settings chosen among 2 on validation, at the default learning rates, lora 1 is worse",
        ),
        (
            [*searched("full", (1, 2)), *searched("lora", (3, 4, 5, 6))],
            "With unequal search (lora 4 settings, full 2), lora 3 is worse",
        ),
        (
            [*searched("full", (1,)), *searched("lora", (3, 4))],
            "With unequal search (lora 2 settings, full 1), lora 3 is worse",
        ),
        (
            [*searched("full", (1, 2), chosen=False), *searched("lora", (3, 4), chosen=False)],
            "At the settings given, full 1 has the lowest loss",
        ),
    ],
)
def test_it_begins_with_the_search(rows, begins) -> None:
    assert verdict_on(rows).startswith(begins)


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({}, "At default settings"),
        ({"train.log_every_steps": 1, "train.checkpoint_every_steps": 3}, "At default settings"),  # bear on nothing
        ({"method.learning_rate": 1e-3, "train.learning_rate": 1e-3}, "At the settings given"),
        ({"train.learning_rate": 1e-3}, "At the settings given"),
        ({"method.rank": 256}, "At the settings given"),
        ({"train.weight_decay": 0.5}, "At the settings given"),
    ],
)
def test_default_is_what_the_project_s_own_files_say(changes, begins) -> None:
    lora = row("lora", standing="worse", quality=(0.5, 0.4, 0.6), changes=changes)
    assert verdict_on([FULL, lora]).startswith(f"{begins}, lora is worse")


@pytest.mark.parametrize(
    ("lora", "changes", "how"),
    [
        ((), {}, "settings chosen among 2 on validation, at the default learning rates, "),
        ((), {"train.learning_rate": 1e-3}, "settings chosen among 2 on validation, at the learning rates given, "),
        ((1e-3, 2e-3), {}, "settings chosen among 2 on validation, at the default learning rate of full, "),
    ],
)
def test_a_search_over_another_key_says_that_rates_were_not_searched(lora, changes, how) -> None:
    decays = (0.0, 0.1)
    of_lora = searched("lora", lora) if lora else searched("lora", decays, "train.weight_decay", changes=changes)
    full = searched("full", decays, "train.weight_decay")
    assert verdict_on([*full, *of_lora]).startswith(f"With each method's {how}lora ")


@pytest.mark.parametrize(
    ("lora", "condition"),
    [
        (("train.learning_rate", (3, 4)), "With each method's learning rate chosen among 2 on validation"),
        (("train.learning_rate", (3, 4, 5)), "With unequal search (lora 3 settings, full 2)"),
        (
            ("train.weight_decay", (3, 4)),
            "With each method's settings chosen among 2 on validation, at the default learning rate of lora",
        ),
    ],
)
def test_what_to_take_comes_first_after_the_condition_it_holds_under(lora, condition) -> None:
    key, numbers = lora
    found = verdict_on([*searched("full", (1, 2)), *searched("lora", numbers, key, to_full=(0.5, 0.1))])
    assert found.startswith(f"{condition}, take full 1. lora 3 is worse: ")


def test_times_that_do_not_compare_are_left_out() -> None:
    good = row(
        "qlora",
        standing="good enough",
        quality=(0.97, 0.96, 0.98),
        to_full=(0.03, 0.01),
        cost=RunCost(peak_memory_gib=2.0, train_seconds=10.0, device="CPU"),
    )
    assert "time" in verdict_on([FULL, GOOD, good])
    assert "time" not in verdict_on([FULL, GOOD, good], times_compare=False)
    assert "take qlora. " in verdict_on([FULL, good])
    assert verdict_on([FULL, good], times_compare=False).endswith(", with 1.00 of the memory.")


def test_what_would_hardly_decide_is_said_for_sure() -> None:
    lora = row("lora", standing="undecided", quality=(0.94, 0.88, 1.01), would_decide=UNREACHABLE)
    assert verdict_on([FULL, lora]).endswith("; neither more seeds nor more test examples alone would decide it.")


def test_an_end_beside_the_margin_is_not_rounded_onto_it() -> None:
    worse = row("lora", standing="worse", quality=(0.9, 0.852, 0.948))
    assert "90.0 % of full's gain (95 % interval 85.2 to 94.8 %)" in verdict_on([FULL, worse])
    assert "90 % of full's gain (95 % interval 85 to 95 %)" in verdict_on([FULL, worse], margin=0.1)


def test_several_seeds_of_which_rows_share_few() -> None:
    """What a claim rests on are the seeds that both have."""
    two = row(
        "lora", numbers=(1, 2, 4), standing="worse", quality=(0.43, 0.4, 0.46), to_full=estimate(0.57, 0.03, seeds=2)
    )
    assert "lora is worse (weak: 2 seeds): 43 %" in verdict_on([FULL, two])
    one = row("lora", numbers=(3, 4, 5), standing="no claim", to_full=estimate(0.57, 0.03, seeds=1))
    assert verdict_on([FULL, one], [pair("full", "lora", (-0.57, 0.03), seeds=1)]).endswith(
        "full and lora have one seed in common, which says nothing about luck: no claim; run seed=1,2,3,4,5."
    )


def test_of_several_pairs_only_the_weak_ones_are_marked() -> None:
    pairs = [pair("rank=4", "rank=8", (-0.1, 0.01), "rank=4", 2), pair("rank=4", "rank=16", (-0.2, 0.01), "rank=4")]
    assert "It is lower than rank=8 (weak: 2 seeds) and rank=16." in verdict_on(ranks(), pairs)
    pairs = [pair("100", "1000", (0.31, 0.018), "1000"), pair("1000", "None", (0.1, 0.02), seeds=1)]
    assert (
        "; None is lower than 1000 by 0.100 nats per token (95 % interval 0.080 to 0.120), examples only: 1 seed."
        in (verdict_on(sizes(), pairs))
    )


def test_jobs_that_are_not_counted_come_last() -> None:
    jobs = [MissingRun(name=f"full seed={seed}", status="FAILED", error="out of memory") for seed in (1, 2, 3, 4)]
    assert verdict_on([GOOD], missing=jobs).endswith(
        " Not counted: 4 jobs that failed (full seed=1, full seed=2, full seed=3 and 1 more)."
    )
    fates = [("a", "KILLED"), ("b", "NOT STARTED"), ("c", "FINISHED"), ("d", "NOT STARTED")]
    others = [MissingRun(name=name, status=status) for name, status in fates]
    told = (
        "Not counted: 1 job that was killed (a), 2 jobs that were not started (b and d) and 1 job that was not "
        "measured (c)."
    )
    assert verdict_on([GOOD], missing=others).endswith(f" {told}")
    assert verdict_on([GOOD], missing=others, unfair=["Other data."]).endswith(f" {told}")
    assert verdict_on([], missing=others).endswith(f" {told}")


def test_what_stands_for_no_claim_otherwise() -> None:
    lora = row("lora", standing="no claim", loss=(math.nan, math.nan))
    assert "lora can't be judged: the loss of lora isn't finite." in verdict_on([FULL, lora])
    assert "lora can't be judged beside full: the notes say why." in verdict_on(
        [FULL, row("lora", standing="no claim")]
    )


def ranks(**fields: Any) -> list[Row]:
    losses_of = {4: (2.1, 0.015), 8: (2.2, 0.015), 16: (2.3, 0.015)}
    return [
        row("lora", name=f"rank={rank}", values={"method.rank": rank}, loss=loss, is_chosen=False, **fields)
        for rank, loss in losses_of.items()
    ]


RANK_PAIRS = [
    pair("rank=4", "rank=8", (-0.1, 0.01), None),
    pair("rank=4", "rank=16", (-0.2, 0.01), "rank=4"),
    pair("rank=8", "rank=16", (-0.1, 0.01), "rank=8"),
]


def test_without_full_the_lowest_and_what_it_beats() -> None:
    assert verdict_on(ranks(), RANK_PAIRS) == (
        "rank=4 has the lowest loss, 2.100 nats per token (95 % interval 2.085 to 2.115). It is lower than rank=16. It "
        "can't be told apart from rank=8."
    )


def test_without_full_what_validation_chooses() -> None:
    rows = [
        row("lora", name=f"rank={rank}", values={"method.rank": rank}, validation_loss=loss, cost=cost, is_chosen=False)
        for rank, loss, cost in [
            (4, 2.5, LORA_COST),
            (8, 2.3, RunCost(peak_memory_gib=1.0, train_seconds=10.0, device="CPU")),
            (16, math.nan, LORA_COST),
        ]
    ]
    pairs = [RANK_PAIRS[0], pair("rank=8", "rank=16", (0.1, 0.01), "rank=16")]
    assert verdict_on(rows, pairs) == (
        "rank=8 has the lowest validation loss, and a test loss of 2.000 nats per token (95 % interval "
        "1.985 to 2.015). On the test set rank=16 is lower still. It can't be told apart from rank=4; of these rank=8 "
        "needs the least memory and time."
    )


@pytest.mark.parametrize(
    ("rows", "pairs"),
    [
        ([row("lora", 2)], []),
        (ranks(seeds=2)[:1] + ranks(seeds=2)[1:2], []),
        ([row("full", 2, standing="reference", gain=(-0.1, 0.2)), row("qlora", 2, loss=(math.nan, math.nan))], []),
    ],
)
def test_two_seeds_are_weak_wherever_there_is_nothing_beside_which_to_say_it(rows, pairs) -> None:
    assert verdict_on(rows, pairs).endswith(" Two seeds are weak; run seed=1,2,3.")
    assert "weak" not in verdict_on([replace(one, loss=estimate(*LOSS)) for one in rows], pairs)


def test_of_two_and_three_seeds_the_two_are_weak() -> None:
    rows = [row("full", standing="reference"), row("lora", 2, standing="no claim", loss=(2.5, 0.1))]
    assert verdict_on(rows).endswith(" lora has two seeds, which is weak; run seed=1,2,3.")


def test_that_rows_cannot_be_told_apart_is_weak_too_on_two_seeds() -> None:
    lora = row("lora", 2, standing="no claim", to_full=(0.01, 0.02))
    found = verdict_on([row("full", 2, standing="reference"), lora], [pair("full", "lora", (-0.01, 0.02), seeds=2)])
    assert "lora and full can't be told apart (weak: 2 seeds)." in found and found.count("weak") == 1
    sized = verdict_on(sizes(names=(100, 1000), seeds=2), [pair("100", "1000", (0.001, 0.02), seeds=2)])
    assert sized.endswith("95 % interval −0.019 to 0.021; weak: 2 seeds).")


def test_at_most_three_rows_are_named_at_once() -> None:
    rows = [row("lora", 1, name=f"rank={rank}", values={"method.rank": rank}) for rank in range(5)]
    few = [*rows, row("lora", name="rank=9", values={"method.rank": 9})]
    assert "rank=0, rank=1, rank=2 and 2 more have one seed, which says" in verdict_on(few)


def test_without_full_two_seeds_are_weak_and_one_is_none() -> None:
    weak = [pair(one.first, one.second, (-0.1, 0.01), one.lower, 2) for one in RANK_PAIRS]
    assert "It is lower than rank=16 (weak: 2 seeds)." in verdict_on(ranks(seeds=2), weak)
    assert verdict_on(ranks(seeds=1)) == (
        "On these examples and this seed rank=4 has the lowest loss, 2.100 nats per token "
        f"(95 % interval 2.085 to 2.115). {NO_CLAIM}"
    )


def test_no_finite_loss() -> None:
    rows = [row("lora", name=name, loss=(math.inf, math.nan), gain=None, is_chosen=False) for name in ("a", "b")]
    assert verdict_on(rows) == "No row has a finite loss."


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "lora lowers the base model's loss by 1.000 nats per token (95 % interval 0.990 to 1.010)."),
        (
            {"gain": (0.01, 0.02)},
            "lora can't be told apart from the base model: it lowers the loss by 0.010 nats per token (95 % interval "
            "−0.010 to 0.030).",
        ),
        (
            {"gain": None},
            "lora has a loss of 2.000 nats per token (95 % interval 1.985 to 2.015); there is nothing to compare it "
            "with.",
        ),
        (
            {"seeds": 1},
            f"lora lowers the base model's loss by 1.000 nats per token (95 % interval 0.990 to 1.010). {NO_CLAIM}",
        ),
        ({"loss": (math.nan, math.nan), "gain": (math.nan, math.nan)}, "lora's loss isn't finite."),
        (
            {"forgetting": (0.12, 0.05), "forgets": True},
            "lora lowers the base model's loss by 1.000 nats per token (95 % interval 0.990 to 1.010). Forgotten: on "
            "general text the loss rose, lora's by 0.120 (0.070 to 0.170) nats per token.",
        ),
        (
            {"forgetting": (0.12, 0.05)},  # alone it is clear, and isn't once Holm has looked at all rows
            "lora lowers the base model's loss by 1.000 nats per token (95 % interval 0.990 to 1.010).",
        ),
    ],
)
def test_a_single_row(fields, text) -> None:
    assert verdict_on([row("lora", **fields)]) == text


def test_worse_than_the_base() -> None:
    assert verdict_on([row("lora", gain=(-0.5, 0.1))]) == (
        "lora raises the base model's loss by 0.50 nats per token (95 % interval 0.40 to 0.60)."
    )


def sizes(key: str = "data.num_examples", names: Sequence[Any] = (100, 1000, None), seeds: int = 3) -> list[Row]:
    return [
        row("lora", seeds, name=f"{name}", values={key: name}, loss=(2.5 - 0.1 * place, 0.02))
        for place, name in enumerate(names)
    ]


def test_a_sweep_of_sizes_is_told_in_order() -> None:
    pairs = [
        pair("100", "1000", (0.31, 0.018), "1000"),
        pair("100", "None", (0.3, 0.018), "None"),
        pair("1000", "None", (-0.001, 0.02)),
    ]
    assert verdict_on(sizes(), pairs) == (
        "1000 is lower than 100 by 0.310 nats per token (95 % interval 0.292 to 0.328); 1000 and None can't be told "
        "apart (0.001 nats per token, 95 % interval −0.019 to 0.021)."
    )


def test_a_sweep_of_models_is_told_from_the_highest_loss_down() -> None:
    rows = list(reversed(sizes("model.name", ("small", "large"))))
    pairs = [pair("large", "small", (-0.1, 0.01), "large", 2)]
    assert verdict_on(rows, pairs, metric="bits_per_byte") == (
        "large is lower than small by 0.100 bits per byte (95 % interval 0.090 to 0.110), weak: 2 seeds."
    )


def test_a_sweep_of_sizes_on_one_seed() -> None:
    pairs = [pair("100", "1000", (0.31, 0.018), seeds=1)]
    assert verdict_on(sizes(names=(100, 1000), seeds=1), pairs) == (
        "On these examples and this seed 1000 is lower than 100 by 0.310 nats per token "
        f"(95 % interval 0.292 to 0.328). {NO_CLAIM}"
    )


def test_several_groups_have_a_verdict_each_and_what_lies_between() -> None:
    rows = [
        row("full", name=f"full {model}", standing="reference", values={"model.name": model, "method.name": "full"})
        if method == "full"
        else row(
            "lora",
            name=f"lora {model}",
            standing="worse",
            quality=(0.5, 0.4, 0.6),
            values={"model.name": model, "method.name": "lora"},
        )
        for model in ("a", "b")
        for method in ("full", "lora")
    ]
    found = verdict_on(rows, [pair("full a", "full b", (0.1, 0.01), "full b")])
    assert found == (
        "For a, at default settings, lora is worse: 50 % of full's gain (95 % interval 40 to 60 %), with "
        f"{COSTS}. For b, at default settings, lora is worse: 50 % of full's gain (95 % interval 40 to 60 %), with "
        f"{COSTS}. full b is lower than full "
        "a by 0.100 nats per token (95 % interval 0.090 to 0.110)."
    )


def test_nothing_is_ranked_where_it_would_be_unfair() -> None:
    reasons = ["The test sets differ: so.", "lora (seed 1) was trained on it."]
    assert verdict_on([FULL, GOOD], unfair=reasons) == (
        "Nothing is ranked: the test sets differ: so. lora (seed 1) was trained on it."
    )
    assert verdict_on([FULL, GOOD], unfair=reasons[1:]) == "Nothing is ranked: lora (seed 1) was trained on it."


def test_some_rows_on_one_seed() -> None:
    lora = row("lora", 1, standing="no claim", to_full=(0.003, 0.02))
    assert verdict_on([FULL, lora]) == (
        "At default settings, on these examples and this seed lora's loss is 0.003 nats per token above full's. "
        f"Against full, lora takes {COSTS}. lora has one seed, which says nothing about luck: no claim; run seed=1,2,3."
    )


def test_a_base_without_a_finite_loss() -> None:
    assert verdict_on([row("lora", gain=(math.nan, math.nan))]).endswith("; there is nothing to compare it with.")
    full = row("full", standing="reference", gain=(math.inf, math.nan))
    lora = row("lora", standing="no claim", to_full=(0.1, 0.02))
    assert verdict_on([full, lora]) == (
        f"At default settings, lora and full can't be told apart. Against full, lora takes {COSTS}."
    )
