"""Which example falls into which split: by content, never by order."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmtune.config.data import DataConfig
from llmtune.data.records import Record, content_hash
from llmtune.errors import DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Example:
    """A record and the hash of its content."""

    record: Record
    content_hash: str


@dataclass(frozen=True)
class Splits:
    """The examples of each split, in an order that follows from their content."""

    by_name: dict[str, list[Example]]
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    """Examples left out, by source ("train" or "eval") and reason."""
    num_test_in_training: int = 0
    """Test examples that also stand in the training or the validation split."""


def split_records(config: DataConfig, records: Sequence[Record], eval_records: Sequence[Record] | None) -> Splits:
    """Divide examples into train, validation and test.

    An example's split follows from its content (its group's name, where it has a group), `split_seed` and the
    fractions, so it stays where it is when others are added. Where a split would stay empty it gets the one group that
    was nearest. The examples that a limit keeps are part of those that a higher limit keeps.

    Args:
        config: fractions, limits and seed.
        records: what is divided.
        eval_records: the test set; None cuts it from `records`.

    Raises:
        DataError: there are too few examples to fill the splits.
    """
    examples, num_duplicates = _without_duplicates(records)
    dropped = {"train": Counter(duplicate=num_duplicates)}
    test_fraction = config.test_fraction if eval_records is None else 0.0
    by_name = _divide(examples, config, test_fraction)
    if eval_records is not None:
        by_name["test"], num_duplicates = _without_duplicates(eval_records)
        dropped["eval"] = Counter(duplicate=num_duplicates)
    limits = {
        "train": config.num_examples,
        "validation": config.num_validation_examples,
        "test": config.num_test_examples,
    }
    for name in SPLITS:
        by_name[name].sort(key=lambda example: _place(config.split_seed, "select", example.content_hash))
        source = "eval" if name == "test" and eval_records is not None else "train"
        limit = limits[name]
        dropped[source][f"over the limit of {name} examples"] = len(by_name[name]) - len(by_name[name][:limit])
        by_name[name] = by_name[name][:limit]
    learnt = {example.content_hash for name in ("train", "validation") for example in by_name[name]}
    overlap = sum(example.content_hash in learnt for example in by_name["test"])
    splits = Splits(by_name, {source: +counts for source, counts in dropped.items()}, overlap)
    check_not_empty({name: len(found) for name, found in by_name.items()}, config, "")
    return splits


def check_not_empty(num_examples: Mapping[str, int], config: DataConfig, why: str) -> None:
    """Check that each split that is asked for holds an example.

    Args:
        num_examples: examples by split.
        config: what was asked for.
        why: what emptied a split, for the message; may be empty.

    Raises:
        DataError: a split is empty.
    """
    shown = ", ".join(f"{name} {num_examples[name]}" for name in SPLITS)
    if not num_examples["train"]:
        raise DataError(f"no training example is left{why} ({shown}); give more examples, or set data.eval_path")
    if not num_examples["test"]:
        raise DataError(
            f"no test example is left{why} ({shown}); set data.test_fraction above 0 or data.eval_path, or give more "
            "examples"
        )
    if not num_examples["validation"] and config.validation_fraction > 0:
        raise DataError(
            f"no validation example is left{why} ({shown}) though data.validation_fraction is "
            f"{config.validation_fraction}; give more examples, or set it to 0"
        )


def _without_duplicates(records: Sequence[Record]) -> tuple[list[Example], int]:
    """The first of each content, and how many others there were."""
    found: dict[str, Example] = {}
    for record in records:
        digest = content_hash(record)
        found.setdefault(digest, Example(record, digest))
    return list(found.values()), len(records) - len(found)


def _divide(examples: Sequence[Example], config: DataConfig, test_fraction: float) -> dict[str, list[Example]]:
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.record.group or example.content_hash].append(example)
    places = {group: _place(config.split_seed, "split", group) for group in groups}
    waiting = sorted(groups, key=lambda group: places[group])
    by_name: dict[str, list[Example]] = {name: [] for name in SPLITS}
    below = 0.0
    for name, fraction in (("test", test_fraction), ("validation", config.validation_fraction)):
        below += fraction
        while fraction and waiting and (places[waiting[0]] < below or not by_name[name]):
            by_name[name] += groups[waiting.pop(0)]
    by_name["train"] = [example for group in waiting for example in groups[group]]
    return by_name


def _place(split_seed: int, purpose: str, key: str) -> float:
    """A place in [0, 1) that depends on the arguments alone, evenly spread over keys."""
    digest = hashlib.sha256(f"{purpose}\x1f{split_seed}\x1f{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
