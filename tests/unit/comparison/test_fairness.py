"""What may not be ranked: each reason by itself, and that what is fair isn't refused."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up import losses, result, runs_of, sweep

from llmtune.comparison.compare import compare
from llmtune.comparison.results import TrainedOn
from llmtune.comparison.wording import listed
from llmtune.config.compare import CompareConfig

pytestmark = pytest.mark.fast

GAINS = {"full": 1.0, "lora": 0.98}


def compared(results):
    return compare(results, CompareConfig(), "a sweep")


def unfair(results) -> str:
    """The one reason why nothing is ranked; and nothing is."""
    found = compared(results)
    assert len(found.unfair) == 1
    assert found.pairs == []
    assert all(row.standing is None and row.quality is None and row.to_full is None for row in found.rows)
    assert not any(row.is_chosen for row in found.rows)
    own = [row for row in found.rows if not row.is_base]
    assert [row.name for row in own] == sorted(row.name for row in own)
    assert all(np.isfinite([row.loss.value, row.loss.low, row.loss.high]).all() for row in own)
    assert found.verdict.startswith("Nothing is ranked: ")
    return found.unfair[0]


def changed(results, method: str, **fields: Any):
    """The results with other fields in the runs of one method."""
    return [replace(run, **fields) if run.method == method else run for run in results]


def test_a_sweep_of_methods_is_fair() -> None:
    found = compared(sweep(GAINS))
    assert found.unfair == []
    assert len(found.pairs) == 1


def test_other_test_sets() -> None:
    ids = tuple(f"e{index:03d}" for index in range(5, 125))
    moved = [
        replace(
            run, tuned=replace(run.tuned, example_ids=ids), config={**run.config, "data.eval_path": "/d/other.jsonl"}
        )
        if run.method == "lora"
        else run
        for run in sweep(GAINS)
    ]
    assert unfair(moved) == (
        "The test sets differ: of the 120 test examples of full eval_path=null (seeds 1, 2 and 3), 5 are missing in "
        "lora eval_path=other.jsonl (seeds 1, 2 and 3), and 5 others stand there (from other.jsonl and train.jsonl; "
        "data.eval_path is /d/other.jsonl and null). Measure all of them on one file: python -m llmtune evaluate "
        "run=RUN data.eval_path=FILE."
    )


def test_an_example_that_stands_twice_is_counted_twice() -> None:
    ids = ("a", "a", "b")
    results = [
        result(losses([1.0, 2.0, 3.0], example_ids=ids), "full"),
        result(losses([1.0, 3.0], example_ids=("a", "b")), "lora"),
    ]
    assert "of the 3 test examples of full (seed 1), 1 are missing in lora (seed 1), and 0 others" in unfair(results)


def test_another_mask_under_one_tokenizer() -> None:
    def longer(run):
        tokens = run.tuned.num_tokens.copy()
        tokens[:7] += 1
        own = {name: replace(getattr(run, name), num_tokens=tokens) for name in ("tuned", "base")}
        return replace(run, **own, config={**run.config, "data.max_seq_len": 1024})

    results = [longer(run) if run.method == "lora" else run for run in sweep(GAINS, (1,))]
    assert unfair(results) == (
        "What is measured differs: 7 test examples have another number of supervised tokens in lora max_seq_len=1024 "
        "(seed 1) than in full max_seq_len=512 (seed 1); data.max_seq_len is 1024 and 512. Measure all alike."
    )


def other_tokenizer(run, num_bytes: np.ndarray | None = None):
    """The run under a tokenizer that cuts the same text into half as many tokens."""
    changes: dict[str, Any] = {"digests": {**run.digests, "tokenizer": "u" * 64, "train": "e" * 64}}
    for name in ("tuned", "base"):
        own = getattr(run, name)
        num_bytes = own.num_bytes if num_bytes is None else num_bytes
        changes[name] = replace(own, num_tokens=own.num_tokens // 2, num_bytes=num_bytes)
    return replace(run, **changes, config={**run.config, "model.name": "other"})


def two_tokenizers(num_bytes: np.ndarray | None = None, **changes: Any):
    first = list(runs_of("lora", 1.0))
    second = [replace(other_tokenizer(run, num_bytes), **changes) for run in runs_of("lora", 0.5)]
    return first + second


def test_other_tokenizers_are_ranked_by_bits_per_byte() -> None:
    found = compared(two_tokenizers())
    assert found.unfair == []
    assert found.metric == "bits_per_byte"
    assert [pair.lower for pair in found.pairs] == ["tiny"]


def test_other_tokenizers_with_a_few_other_bytes_are_fair() -> None:
    # 120 examples of 40 bytes: 1 % is 48 bytes.
    num_bytes = np.full(120, 40)
    num_bytes[:48] -= 1
    assert compared(two_tokenizers(num_bytes)).unfair == []
    num_bytes[48] -= 1
    assert "tiny (seed 1) counts differs by 49 bytes from the 4,751 of other (seed 1)" in unfair(
        two_tokenizers(num_bytes)
    )


def test_other_training_examples_that_no_key_tells() -> None:
    results = changed(sweep(GAINS, (1,)), "lora", digests={"base": "b", "tokenizer": "t" * 64, "train": "other"})
    results = [replace(run, digests={**run.digests, "base": "b"}) for run in results]
    assert unfair(results) == (
        "The training examples, or their order, differ between full (seed 1), and lora (seed 1), and no key says so: "
        "the files changed in between, or another version prepared them. Train all on the same examples."
    )


def test_a_seed_on_other_training_examples_is_found() -> None:
    results = sweep({"lora": 1.0})
    results[1] = replace(results[1], digests={**results[1].digests, "train": "other"})
    assert "differ between lora (seeds 1 and 3), and lora (seed 2), and no key" in unfair(results)


def test_older_records_are_told_apart_by_the_digest_of_all_data() -> None:
    digests = {"base": "b", "tokenizer": "t", "data": "d1"}
    results = [replace(run, digests=digests) for run in sweep(GAINS, (1,))]
    assert compared(results).unfair == []
    results = changed(results, "lora", digests={**digests, "data": "d2"})
    assert "differ between full (seed 1), and lora (seed 1)" in unfair(results)


def test_an_older_record_beside_a_newer_is_told_by_what_both_have() -> None:
    new = {"base": "b", "tokenizer": "t", "data": "d1", "train": "s1"}
    results = changed([replace(run, digests=new) for run in sweep(GAINS, (1,))], "lora", digests={**new, "train": "s1"})
    old = {name: digest for name, digest in new.items() if name != "train"}
    assert compared(changed(results, "lora", digests=old)).unfair == []


def test_more_data_is_what_a_sweep_may_vary() -> None:
    results = [
        run
        for number in (10, 20)
        for run in runs_of(
            "lora",
            0.5,
            name=f"lora{number}",
            changes={"data.num_examples": number},
            digests={"tokenizer": "t", "base": "b", "train": str(number)},
        )
    ]
    assert compared(results).unfair == []


def test_other_files_under_other_tokenizers_are_found_by_the_sources() -> None:
    results = two_tokenizers()
    digests = [{**run.digests, "sources": f"s{place // 3}"} for place, run in enumerate(results)]
    results = [replace(run, digests=own) for run, own in zip(results, digests, strict=True)]
    assert "The training examples, or their order, differ between" in unfair(results)
    alike = [replace(run, digests={**run.digests, "sources": "s"}) for run in results]
    assert compared(alike).unfair == []


def test_examples_dropped_by_the_models_loss_are_the_models_doing() -> None:
    def runs(outliers: str):
        return [
            run
            for model in ("small", "large")
            for run in runs_of(
                "lora",
                0.5,
                name=model,
                changes={"model.name": model, "data.loss_outliers": outliers},
                digests={"tokenizer": "t", "base": model, "train": model},
            )
        ]

    assert compared(runs("drop")).unfair == []
    assert "The training examples" in unfair(runs("ignore"))


def with_steps(results, numbers: dict[str, TrainedOn], **changes: Any):
    """The results with the steps of each method, or of `method seed`."""
    return [
        replace(
            run,
            trained_on=numbers.get(f"{run.method} {run.seed}", numbers.get(run.method, STEPS)),
            config={**run.config, **changes.get(run.method, {})},
        )
        for run in results
    ]


STEPS = TrainedOn(examples_per_step=8, total_steps=46, num_steps=46, num_tokens=9000)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        (
            {"lora 1": replace(STEPS, examples_per_step=32, total_steps=12, num_tokens=8000)},
            "(seeds 1, 2 and 3) and lora (seeds 2 and 3) had 8 examples a step and lora (seed 1) had 32, and no key",
        ),
        (
            {"full 2": replace(STEPS, total_steps=5)},
            "and lora (seeds 1, 2 and 3) had 46 steps and full (seed 2) had 5, and no key",
        ),
        (
            {"full 2": replace(STEPS, num_steps=5)},
            "lora (seeds 1, 2 and 3) had 46 steps done and full (seed 2) had 5, and no key",
        ),
        ({"full 2": replace(STEPS, num_tokens=7)}, "full (seed 2) had 7 training tokens and lora (seed 2) had 9,000"),
    ],
)
def test_other_steps_that_no_key_tells(numbers, told) -> None:
    reason = unfair(with_steps(sweep(GAINS), numbers))
    assert reason.startswith("The runs weren't trained alike: ") and told in reason


def test_steps_alike_or_unknown_are_fair() -> None:
    assert compared(with_steps(sweep(GAINS), {})).unfair == []
    assert compared(with_steps(sweep(GAINS), {"lora": TrainedOn()})).unfair == []


def test_tokens_are_compared_seed_by_seed() -> None:
    """An epoch that isn't finished has other examples under another seed."""
    numbers = {f"{method} {seed}": replace(STEPS, num_tokens=9000 + seed) for method in GAINS for seed in (1, 2, 3)}
    assert compared(with_steps(sweep(GAINS), numbers)).unfair == []
    numbers["lora 2"] = replace(STEPS, num_tokens=9003)
    assert "full (seed 2) had 9,002 training tokens and lora (seed 2) had 9,003" in unfair(
        with_steps(sweep(GAINS), numbers)
    )


FEWER = replace(STEPS, total_steps=20, num_steps=20, num_tokens=4000)


@pytest.mark.parametrize(
    ("numbers", "key"),
    [
        (replace(FEWER, examples_per_step=32), "hardware.num_processes"),
        (replace(FEWER, examples_per_step=32), "train.micro_batch_size"),
        (FEWER, "train.num_epochs"),
        (FEWER, "data.num_examples"),
        (FEWER, "model.revision"),
    ],
)
def test_a_key_of_the_sweep_may_change_the_steps(numbers, key) -> None:
    found = with_steps(sweep({"lora": 0.9}) + list(runs_of("lora", 0.9, name="other")), {})
    for place in (3, 4, 5):
        found[place] = replace(found[place], trained_on=numbers, config={**found[place].config, key: 2})
    assert compared(found).unfair == []
    # Its own runs still have to agree.
    found[5] = replace(found[5], trained_on=replace(numbers, total_steps=19))
    assert "weren't trained alike" in unfair(found)


def test_steps_of_tokens_differ_by_seed_alone() -> None:
    """The seed lays the examples, and now and then that takes a step more."""
    of_seed = {
        f"{method} {seed}": replace(STEPS, examples_per_step=None, total_steps=45 + seed, num_steps=45 + seed)
        for method in GAINS
        for seed in (1, 2, 3)
    }
    filled = {method: {"train.batch_unit": "tokens", "train.tokens_per_step": 4096} for method in GAINS}
    assert compared(with_steps(sweep(GAINS), of_seed, **filled)).unfair == []
    assert "had 46 steps" in unfair(with_steps(sweep(GAINS), of_seed)), "steps of examples don't"
    of_seed["lora 2"] = replace(of_seed["lora 2"], total_steps=46)
    told = "full (seed 2) had 47 steps and lora (seed 2) had 46, and no key"
    assert told in unfair(with_steps(sweep(GAINS), of_seed, **filled))


def test_a_sweep_may_vary_what_fills_a_step() -> None:
    found = with_steps(sweep({"lora": 0.9}) + list(runs_of("lora", 0.9, name="other")), {})
    fewer = replace(STEPS, examples_per_step=None, total_steps=20, num_steps=20)
    for place in (3, 4, 5):
        config = {**found[place].config, "train.batch_unit": "tokens", "train.tokens_per_step": 4096}
        found[place] = replace(found[place], trained_on=fewer, config=config)
    assert compared(found).unfair == []


def test_more_data_or_epochs_are_no_reason_for_a_larger_step() -> None:
    found = with_steps(sweep({"lora": 0.9}) + list(runs_of("lora", 0.9, name="other")), {})
    for place in (3, 4, 5):
        other = replace(FEWER, examples_per_step=32)
        found[place] = replace(found[place], trained_on=other, config={**found[place].config, "train.num_epochs": 1})
    assert "had 32 examples a step" in unfair(found)


def test_early_stopping_may_end_runs_at_other_steps() -> None:
    stopped = {"lora": replace(STEPS, num_steps=20, num_tokens=4000)}
    patient = {method: {"train.early_stopping_patience": 2} for method in GAINS}
    assert compared(with_steps(sweep(GAINS), stopped, **patient)).unfair == []
    assert "steps done" in unfair(with_steps(sweep(GAINS), stopped))


def test_a_run_that_saw_the_test_set() -> None:
    results = changed(sweep(GAINS, (1,)), "lora", num_test_seen=12)
    assert unfair(results) == (
        "12 of the 120 test examples also stand in what lora (seed 1) learnt from or chose by, so the loss on them "
        "says nothing. Measure on examples that are new to all runs: python -m llmtune evaluate run=RUN "
        "data.eval_path=FILE."
    )


def test_runs_that_saw_other_parts_of_the_test_set_are_told_at_once() -> None:
    results = [replace(run, num_test_seen=run.seed) for run in sweep(GAINS, (0, 1, 2))]
    assert unfair(results).startswith(
        "Up to 2 of the 120 test examples also stand in what full (seeds 1 and 2) and lora (seeds 1 and 2) learnt from"
    )


def test_a_reason_names_three_rows_and_tells_one_other_test_set() -> None:
    """However many rows there are, and however many test sets."""

    def moved(run, place: int):
        ids = tuple(f"e{index:03d}" for index in range(place, place + 120))
        return replace(run, tuned=replace(run.tuned, example_ids=ids))

    ranks = (1, 2, 3, 4, 5, 6, 7)
    results = [
        moved(run, max(0, rank - 5))
        for rank in ranks
        for run in runs_of("lora", 0.9, (1, 2), name=f"lora{rank}", changes={"method.rank": rank})
    ]
    reason = unfair(results)
    assert reason.startswith(
        "The test sets differ: of the 120 test examples of rank=1 (seeds 1 and 2), rank=2 (seeds 1 and 2), rank=3 "
        "(seeds 1 and 2) and 2 more, 1 are missing in rank=6 (seeds 1 and 2), and 1 others stand there (from "
        "train.jsonl), and 2 more runs differ too. Measure"
    )


def test_how_seeds_are_compared_is_not_said_where_nothing_is() -> None:
    results = [run for run in sweep(GAINS) if (run.method, run.seed) != ("lora", 2)]
    assert any(note.startswith("Seed 2 missing") for note in compared(results).notes)
    refused = compared(changed(results, "lora", num_test_seen=12))
    assert refused.unfair and not any("missing" in note for note in refused.notes)


def test_another_base_of_the_same_name() -> None:
    digests = {"tokenizer": "t" * 64, "train": "d" * 64}
    results = [replace(run, digests={**digests, "base": "1" * 64}) for run in sweep(GAINS, (1,))]
    results = changed(results, "lora", digests={**digests, "base": "2" * 64})
    assert unfair(results) == (
        "The base weights of tiny differ between full (seed 1), and lora (seed 1) (sha256 111111111111… and "
        "222222222222…). Train all of them on the same weights; model.revision=COMMIT pins them."
    )


def test_another_base_under_another_name_is_what_a_sweep_may_vary() -> None:
    results = [
        run
        for model in ("small", "large")
        for run in runs_of(
            "lora",
            0.5,
            name=model,
            changes={"model.name": model},
            digests={"tokenizer": "t", "train": "d", "base": model},
        )
    ]
    assert compared(results).unfair == []


def confounded(*settings: tuple[str, int]):
    return [
        run
        for method, number in settings
        for run in runs_of(
            method,
            0.5,
            (1,),
            name=f"{method}{number}",
            changes={"data.num_examples": number},
            digests={"tokenizer": "t", "base": "b", "train": str(number)},
        )
    ]


def test_rows_that_differ_in_two_ways_have_nothing_to_compare() -> None:
    assert unfair(confounded(("lora", 100), ("full", 1000))) == (
        "full num_examples=1000 and lora num_examples=100 differ in data.num_examples and in method.name at once, so "
        "it can't be told which of them makes the difference. Add a run that differs in one of them alone."
    )


def test_a_row_between_them_makes_them_comparable() -> None:
    found = compared(confounded(("lora", 100), ("full", 1000), ("full", 100)))
    assert found.unfair == []
    between = {frozenset((pair.first, pair.second)) for pair in found.pairs}
    assert between == {
        frozenset(("full num_examples=100", "lora num_examples=100")),
        frozenset(("full num_examples=100", "full num_examples=1000")),
    }


def test_several_reasons_are_all_said() -> None:
    results = changed(sweep(GAINS, (1,)), "lora", num_test_seen=12, digests={"base": "c" * 64})
    found = compared(results)
    assert len(found.unfair) == 2
    assert all(reason in found.verdict for reason in found.unfair)


def test_rows_of_other_test_sets_have_their_own_losses() -> None:
    """A row's figures are of the runs that measured what its first did."""
    other = result(losses([1.0] * 5), "lora", 2)
    found = compared([result(losses([10.0, 30.0, 20.0, 20.0]), "lora", 1), other])
    assert found.rows[0].loss.value == pytest.approx(80 / 40)


@pytest.mark.parametrize(
    ("names", "text"),
    [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c"), (list("abcdef"), "a, b, c, d and 2 more")],
)
def test_lists_read_as_sentences(names, text) -> None:
    assert listed(names) == text
