"""What makes runs comparable: reasons to rank nothing."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, groupby
from pathlib import PurePath
from typing import Any

import numpy as np

from llmtune.comparison.outcome import Metric
from llmtune.comparison.reading import UNTRAINED
from llmtune.comparison.results import RunResult
from llmtune.comparison.rows import Setting, Settings, as_text
from llmtune.comparison.wording import listed

Named = tuple[str, RunResult]
"""What a run's row is called in a sentence, and the run."""
_BYTES_APART = 0.01
"""Share of the test text that two tokenizers may count differently: an example's first token doesn't count."""
_DECIDE_THE_MASK = ("max_seq_len", "overlong", "chat_template", "end_token", "add_tokens", "shape")
_DECIDE_THE_TEST_SET = (
    "eval_path",
    "path",
    "id",
    "split",
    "revision",
    "test_fraction",
    "num_test_examples",
    "split_seed",
)
_DECIDE_A_STEP = (
    *("train.micro_batch_size", "train.gradient_accumulation_steps", "hardware.num_processes"),
    *("train.batch_unit", "train.tokens_per_step"),
)
_DECIDE_THE_STEPS = (*_DECIDE_A_STEP, "train.num_epochs", "train.max_steps", "data.", "model.")
_FILES_SHOWN = 3
_ROWS_SHOWN = 3

MEASURE_ON = "python -m llmtune evaluate run=RUN data.eval_path=FILE"
"""What to type so that a run's weights are measured on another test file."""


def named_runs(settings: Settings) -> list[Named]:
    """Every run that counts, each with what to call its row in a sentence."""
    untrained = [(f"the untrained {run.config.get('model.name')}", run) for run in settings.untrained]
    return [*_runs_of(settings.trained), *untrained]


def comparable(first: Setting, second: Setting) -> bool:
    """Whether the difference of two settings has one cause: both belong to one question, or differ in the question."""
    return as_text(first.group) == as_text(second.group) or as_text(first.rest) == as_text(second.rest)


def find_unfair(settings: Settings, metric: Metric) -> list[str]:
    """Why the runs can't be ranked, a sentence each; empty where they can.

    Args:
        settings: the runs by setting.
        metric: what they would be ranked by.
    """
    runs = named_runs(settings)
    other_test_sets = list(_other_test_sets(runs))
    found = [
        *other_test_sets,
        *([] if other_test_sets else _other_masks(runs, metric)),
        *_other_training_examples(settings),
        *_other_steps(settings.trained),
        *_seen(runs),
        *_other_base(settings, runs),
    ]
    return found or list(_confounded(settings.trained))


def _other_test_sets(runs: Sequence[Named]) -> Iterator[str]:
    alike = _alike(runs, lambda run: run.tuned.example_ids)
    if len(alike) < 2:
        return
    most, *others = sorted(alike, key=len, reverse=True)
    expected = Counter(most[0][1].tuned.example_ids)
    for other in others[:1]:
        found = Counter(other[0][1].tuned.example_ids)
        lacking, added = (expected - found).total(), (found - expected).total()
        files = listed(list(dict.fromkeys(_test_source(run) for _, run in (*other, *most))), _FILES_SHOWN)
        yield (
            f"The test sets differ: of the {expected.total():,} test examples of {names_of(most)}, {lacking:,} are "
            f"missing in {names_of(other)}, and {added:,} others stand there (from {files}"
            f"{_differing(most, other, _DECIDE_THE_TEST_SET)}){_more(others)}. Measure all of them on one file: "
            f"{MEASURE_ON}."
        )


def _other_masks(runs: Sequence[Named], metric: Metric) -> Iterator[str]:
    # Ranked by loss, all count the same tokens, whether or not an older record says which tokenizer it had.
    for same_tokenizer in _alike(runs, lambda run: metric == "loss" or run.digests.get("tokenizer")):
        alike = _alike(same_tokenizer, lambda run: run.tuned.num_tokens.tobytes())
        most, *others = sorted(alike, key=len, reverse=True)
        for other in others[:1]:
            changed = int((other[0][1].tuned.num_tokens != most[0][1].tuned.num_tokens).sum())
            yield (
                f"What is measured differs: {changed:,} test examples have another number of supervised tokens in "
                f"{names_of(other)} than in {names_of(most)}{_differing(most, other, _DECIDE_THE_MASK)}"
                f"{_more(others)}. Measure all alike."
            )
    if metric == "bits_per_byte":
        yield from _other_bytes(runs)


def _other_bytes(runs: Sequence[Named]) -> Iterator[str]:
    """Under other tokenizers: whether the same text was measured, but for what a tokenizer can't help to leave out."""
    (_, first), *others = runs
    total = int(first.tuned.num_bytes.sum())
    for named in others:
        run = named[1]
        apart = int(np.abs(run.tuned.num_bytes - first.tuned.num_bytes).sum())
        if apart > _BYTES_APART * max(total, int(run.tuned.num_bytes.sum())):
            differing = _differing(runs[:1], [named], _DECIDE_THE_MASK)
            yield (
                f"What is measured differs: the text that {names_of([named])} counts differs by {apart:,} bytes from "
                f"the {total:,} of {names_of(runs[:1])}{differing}. Raise data.max_seq_len until no test example is "
                "cut, and measure again."
            )
            return


def _other_training_examples(settings: Settings) -> Iterator[str]:
    """Where the config says that the training examples are the same, and they aren't."""
    for same_data in _alike_settings(settings.trained, _training_data):
        runs = _runs_of(same_data)
        by_tokenizer = _alike(runs, lambda run: run.digests.get("tokenizer"))
        for alike in by_tokenizer:
            yield from _changed(alike, "train" if all("train" in run.digests for _, run in alike) else "data")
        if len(by_tokenizer) > 1:  # what a tokenizer makes too long may be left out: that is the model's doing
            yield from _changed(runs, "sources")


def _other_steps(trained: Sequence[Setting]) -> Iterator[str]:
    """Where the config says that the same examples make up the same steps, and they don't.

    A larger step makes fewer of them, and fewer steps hold fewer tokens: only the first that differs is told.
    """
    # Steps that are filled with tokens are more or fewer as the seed lays the examples.
    filled = any(run.config.get("train.batch_unit") == "tokens" for _, run in _runs_of(trained))
    deciding = (*_DECIDE_THE_STEPS, "seed") if filled else _DECIDE_THE_STEPS
    found = [
        *_differ_in("examples a step", lambda run: run.trained_on.examples_per_step, trained, _DECIDE_A_STEP),
        *_differ_in("steps", lambda run: run.trained_on.total_steps, trained, deciding),
        *_differ_in("steps done", lambda run: _unless_stopped(run, run.trained_on.num_steps), trained, deciding),
        # Where an epoch isn't finished, the seed decides which examples it has.
        *_differ_in(
            "training tokens",
            lambda run: _unless_stopped(run, run.trained_on.num_tokens),
            trained,
            (*_DECIDE_THE_STEPS, "seed"),
        ),
    ]
    yield from found[:1]


def _differ_in(
    what: str, number_of: Callable[[RunResult], int | None], trained: Sequence[Setting], decided_by: tuple[str, ...]
) -> Iterator[str]:
    """A sentence where a number differs among runs that have what decides it in common."""
    known = [named for named in _runs_of(trained) if number_of(named[1]) is not None]
    axes = {key for setting in trained for key in setting.values if key.startswith(decided_by)}
    deciding = sorted(axes | ({"seed"} & set(decided_by)))
    for same in _alike(known, lambda run: as_text([run.config.get(key) for key in deciding])):
        most, *others = sorted(_alike(same, number_of), key=len, reverse=True)
        for other in others[:1]:
            yield (
                f"The runs weren't trained alike: {names_of(most)} had {number_of(most[0][1]):,} {what} and "
                f"{names_of(other)} had {number_of(other[0][1]):,}, and no key says so. The number of processes, "
                "or a run that went on otherwise, may have changed it: train all alike, hardware.num_processes too."
            )


def _unless_stopped(run: RunResult, number: int | None) -> int | None:
    """The number, if early stopping couldn't make it another."""
    return number if run.config.get("train.early_stopping_patience") is None else None


def _changed(runs: Sequence[Named], digest: str) -> Iterator[str]:
    known = _alike([(name, run) for name, run in runs if digest in run.digests], lambda run: run.digests[digest])
    if len(known) > 1:
        most, *others = sorted(known, key=len, reverse=True)
        other = [named for group in others for named in group]
        yield (
            f"The training examples, or their order, differ between {names_of(most)}, and {names_of(other)}, and no "
            "key says so: the files changed in between, or another version prepared them. Train all on the same "
            "examples."
        )


def _seen(runs: Sequence[Named]) -> Iterator[str]:
    told = [named for named in runs if named[1].num_test_seen]
    if told:
        numbers = {run.num_test_seen or 0 for _, run in told}
        number = f"{max(numbers):,}" if len(numbers) == 1 else f"Up to {max(numbers):,}"
        yield (
            f"{number} of the {len(told[0][1].tuned.example_ids):,} test examples also stand in what {names_of(told)} "
            "learnt from or chose by, so the loss on them says nothing. Measure on examples that are new to all runs: "
            f"{MEASURE_ON}."
        )


def _other_base(settings: Settings, runs: Sequence[Named]) -> Iterator[str]:
    model_keys = [key for key in settings.axes if key.startswith("model.")]
    for same_model in _alike(runs, lambda run: as_text([run.config.get(key) for key in model_keys])):
        digests = _alike([named for named in same_model if "base" in named[1].digests], lambda run: run.digests["base"])
        if len(digests) > 1:
            most, *others = sorted(digests, key=len, reverse=True)
            name = most[0][1].config.get("model.name")
            yield (
                f"The base weights of {name} differ between {names_of(most)}, and {names_of(others[0])} (sha256 "
                f"{most[0][1].digests['base'][:12]}… and {others[0][0][1].digests['base'][:12]}…). Train all of them "
                "on the same weights; model.revision=COMMIT pins them."
            )


def _confounded(trained: Sequence[Setting]) -> Iterator[str]:
    if len(trained) < 2 or any(comparable(first, second) for first, second in combinations(trained, 2)):
        return
    first, second = trained[:2]
    group = [key for key in {**first.group, **second.group} if first.group.get(key) != second.group.get(key)]
    rest = [key for key in {**first.rest, **second.rest} if first.rest.get(key) != second.rest.get(key)]
    yield (
        f"{first.name} and {second.name} differ in {listed(group)} and in {listed(rest)} at once, so it can't be told "
        "which of them makes the difference. Add a run that differs in one of them alone."
    )


def _training_data(setting: Setting) -> str:
    """What decides a setting's training examples, as text."""
    of_the_model = setting.runs[0].config.get("data.loss_outliers") == "drop"
    beginnings = ("data.", "model.") if of_the_model else ("data.",)
    return as_text({key: value for key, value in setting.values.items() if key.startswith(beginnings)})


def _runs_of(settings: Sequence[Setting]) -> list[Named]:
    return [(setting.name, run) for setting in settings for run in setting.runs]


def _alike_settings(settings: Sequence[Setting], key: Callable[[Setting], str]) -> list[list[Setting]]:
    return [list(group) for _, group in groupby(sorted(settings, key=key), key=key)]


def _alike(runs: Sequence[Named], key: Callable[[RunResult], Any]) -> list[list[Named]]:
    """The runs by what a key function says of them."""
    found: dict[Any, list[Named]] = {}
    for name, run in runs:
        found.setdefault(key(run), []).append((name, run))
    return list(found.values())


def names_of(runs: Sequence[Named]) -> str:
    """The rows of some runs with the runs' seeds, three rows at most and the rest as a number.

    Args:
        runs: those to name, each with its row.
    """
    seeds_of: dict[str, list[str]] = {}
    for name, run in runs:
        seeds_of.setdefault(name, []).extend([] if run.method == UNTRAINED else [str(run.seed)])
    return listed([f"{name}{_seeds_in_brackets(seeds)}" for name, seeds in seeds_of.items()], _ROWS_SHOWN)


def _seeds_in_brackets(seeds: Sequence[str]) -> str:
    return f" (seed{'s' if len(seeds) > 1 else ''} {listed(seeds)})" if seeds else ""


def _more(others: Sequence[Sequence[Named]]) -> str:
    """How many others differ in ways of their own beside the one that is told, as part of a sentence."""
    number = sum(len(runs) for runs in others[1:])
    return f", and {number:,} more run{'s differ' if number > 1 else ' differs'} too" if number else ""


def _test_source(run: RunResult) -> str:
    config: Mapping[str, Any] = run.config
    place = (
        config.get("data.eval_path") or config.get("data.path") or config.get("data.id") or config.get("data.source")
    )
    return PurePath(str(place)).name


def _differing(most: Sequence[Named], other: Sequence[Named], names: Sequence[str]) -> str:
    """The data keys behind a difference with both values, as part of a sentence; empty where none differs."""
    first, second = most[0][1].config, other[0][1].config
    keys = [f"data.{name}" for name in names]
    found = [
        f"{key} is {_shown(second.get(key))} and {_shown(first.get(key))}"
        for key in keys
        if first.get(key) != second.get(key)
    ]
    return f"; {listed(found)}" if found else ""


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
