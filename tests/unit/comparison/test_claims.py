"""What may be claimed of a row beside its base, and what is left out where it doesn't compare."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up import losses, sweep

from llmtune.comparison.compare import compare
from llmtune.comparison.outcome import Comparison, Row
from llmtune.comparison.statistics import Estimate, holm
from llmtune.config.compare import CompareConfig

pytestmark = pytest.mark.fast

GAINS = {"full": 1.0, "lora": 0.98, "qlora": 0.5}


def compared(results) -> Comparison:
    return compare(results, CompareConfig(), "a sweep")


def row(found: Comparison, name: str) -> Row:
    return next(row for row in found.rows if row.name == name)


def with_general(results, rises: dict[str, float], spread: float = 1.0, **fields: Any):
    """The results with general text of 40 examples of 10 tokens, on which the loss rose by so much, give or take."""
    base = losses(np.full(40, 20.0))
    random = np.random.default_rng(3)
    return [
        replace(
            run,
            general_base=base,
            general_tuned=losses(
                base.loss_sums + 10 * (rises[run.method] + spread * (random.normal() + random.normal(size=40)))
            ),
            **{
                name: value
                for method, values in fields.items()
                if method == run.method
                for name, value in values.items()
            },
        )
        for run in results
    ]


def claimed(estimates: dict[str, Estimate]) -> list[tuple[bool, bool]]:
    """Of each row, in order, whether its rise alone would be claimed, and whether it is after Holm over all."""
    adjusted = holm([one.p_value for one in estimates.values()])
    return [
        (one.value > 0 and one.p_value <= 0.05, one.value > 0 and p_value <= 0.05)
        for one, p_value in zip(estimates.values(), adjusted, strict=True)
    ]


@pytest.mark.parametrize("kind", ["forgets", "is_worse_than_base"])
def test_what_is_worse_than_the_base_is_claimed_after_a_correction_over_all_rows(kind) -> None:
    seen = set()
    for level in np.linspace(0.0, 0.1, 9):
        if kind == "forgets":
            results = with_general(sweep(GAINS), {"full": 0.0, "lora": level, "qlora": 0.0}, spread=0.02)
        else:
            results = sweep({"full": 0.0, "lora": -level, "qlora": 0.0})
        found = compared(results)
        own = [one for one in found.rows if not one.is_base]
        rises = {one.name: one.forgetting if kind == "forgets" else minus(one.gain) for one in own}
        expected = claimed({name: rise for name, rise in rises.items() if rise is not None})
        assert [getattr(one, kind) for one in own] == [after for _, after in expected]
        seen |= set(expected)
    # The control: at some level one is claimed alone and isn't among three.
    assert seen == {(False, False), (True, False), (True, True)}


def minus(gain: Estimate | None) -> Estimate | None:
    return gain and gain.scaled(-1)


def test_one_seed_claims_neither_and_a_fall_is_neither() -> None:
    one_seed = compared(with_general(sweep({"lora": -0.5}, (1,)), {"lora": 0.5}, spread=0.01))
    assert not row(one_seed, "lora").forgets and not row(one_seed, "lora").is_worse_than_base
    better = row(compared(with_general(sweep({"lora": 0.5}), {"lora": -0.5}, spread=0.01)), "lora")
    assert not better.forgets and not better.is_worse_than_base


def test_general_texts_that_differ_say_nothing_of_each_other() -> None:
    digests = {"base": "b" * 64, "tokenizer": "t" * 64, "train": "d" * 64}
    one, other = ({"digests": {**digests, "general": text}} for text in ("g1", "g2"))
    rises = dict.fromkeys(GAINS, 0.4)
    alike = compared(with_general(sweep(GAINS), rises, 0.01, full=one, lora=one, qlora=one))
    assert all(row(alike, name).forgets for name in GAINS) and alike.notes == []
    apart = compared(with_general(sweep(GAINS), rises, 0.01, full=one, lora=other, qlora=one))
    assert all(row(apart, name).forgetting is None and not row(apart, name).forgets for name in GAINS)
    assert apart.notes == [
        "The general text differs (full (seeds 1, 2 and 3) and qlora (seeds 1, 2 and 3); lora (seeds 1, 2 and 3)), "
        "so what was forgotten doesn't compare and is left out."
    ]
    # Its digest is of the tokens: another tokenizer has another.
    other["digests"] |= {"tokenizer": "u" * 64, "sources": "s"}
    tokenizers = compared(with_general(sweep(GAINS), rises, 0.01, full=one, lora=other, qlora=one))
    assert all(row(tokenizers, name).forgetting is not None for name in GAINS)


def test_a_share_of_fulls_gain_is_told_where_full_gained_on_the_seeds_that_both_have() -> None:
    """Over all its seeds full may have gained for sure, and on those of the other method not."""
    results = [
        run
        for run in [*sweep({"full": 0.5}, (1, 2, 3, 4, 5, 6)), *sweep({"lora": 0.4}, (1, 2, 3))]
        if run.method == "full" or run.seed < 3
    ]
    # On the two in common full's gain is 0.2 and 1.2: of two seeds, that isn't told from 0.
    for run in results:
        if run.method == "full" and run.seed < 3:
            run.tuned.loss_sums[:] += 10 * (0.3 if run.seed == 1 else -0.7)
    found = compared(results)
    full = row(found, "full")
    assert full.gain is not None and full.gain.low > 0
    assert (row(found, "lora").standing, row(found, "lora").quality) == ("no claim", None)
    assert found.notes[-1] == (
        "On the 2 seeds that lora and full have in common the gain of full can't be told from 0, so it can't be said "
        "what share of it lora keeps."
    )


def test_times_of_jobs_that_shared_a_device_do_not_compare() -> None:
    results = sweep(GAINS)
    assert compared(results).times_compare
    results[4] = replace(results[4], choices={**results[4].choices, "jobs_at_once": 3})
    found = compared(results)
    assert not found.times_compare
    assert found.notes == [
        "Jobs shared a device, up to 3 at once, so times, speeds and prices don't compare; sweep.num_parallel=1 gives "
        "each the device for itself."
    ]
