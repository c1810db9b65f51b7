"""Which example falls into which split: by content, never by order."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmtune.config.data import DataConfig
from llmtune.data.records import Record, content_hash
from llmtune.errors import DataError

SPLITS = ("train", "validation", "test")
IN_TEST_FILE = "also in the test file"
"""Why an example is left out of training and validation."""


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
    """Examples that also stand in the test file: they are in the test set, and in neither training nor validation."""


def split_records(config: DataConfig, records: Sequence[Record], eval_records: Sequence[Record] | None) -> Splits:
    """Divide examples into train, validation and test.

    An example's split follows from its content (its group's name, where it has a group), `split_seed` and the
    fractions, so it stays where it is when others are added. Where a split would stay empty it gets the one group that
    was nearest. The examples that a limit keeps are part of those that a higher limit keeps. Of a test file every
    example is kept, and left out of what is divided, so that its loss is of examples that training never saw.

    Args:
        config: fractions, limits and seed.
        records: what is divided.
        eval_records: the test set; None cuts it from `records`.

    Raises:
        DataError: there are too few examples to fill the splits; not raised where the test file took them.
    """
    examples, num_duplicates = _without_duplicates(records)
    dropped = {"train": Counter(duplicate=num_duplicates)}
    limits = {"train": config.num_examples, "validation": config.num_validation_examples}
    num_left_out = 0
    if eval_records is None:
        by_name = _divide(examples, config, config.test_fraction)
        limits["test"] = config.num_test_examples
    else:
        test, num_duplicates = _without_duplicates(eval_records)
        dropped["eval"] = Counter(duplicate=num_duplicates)
        in_test = {example.content_hash for example in test}
        kept = [example for example in examples if example.content_hash not in in_test]
        dropped["train"][IN_TEST_FILE] = num_left_out = len(examples) - len(kept)
        by_name = _divide(kept, config, 0.0) | {"test": test}
    _select(by_name, limits, config.split_seed, dropped["train"])
    splits = Splits(by_name, {source: +counts for source, counts in dropped.items()}, num_left_out)
    num_examples = {name: len(found) for name, found in by_name.items()}
    check_not_empty(num_examples, config, "", training=bool(records) and not num_left_out)
    return splits


def check_not_empty(
    num_examples: Mapping[str, int], config: DataConfig, why: str = "", *, training: bool = True
) -> None:
    """Check that each split that is asked for holds an example.

    Args:
        num_examples: examples by split.
        config: what was asked for.
        why: what emptied a split, for the message; may be empty.
        training: whether training and validation examples are needed; evaluating needs the test set alone.

    Raises:
        DataError: a split is empty.
    """
    shown = ", ".join(f"{name} {num_examples[name]}" for name in SPLITS)
    if training and not num_examples["train"]:
        cure = "give more examples" if config.eval_path else "give more examples, or set data.eval_path"
        raise DataError(f"no training example is left{why} ({shown}); {cure}")
    if not num_examples["test"]:
        raise DataError(
            f"no test example is left{why} ({shown}); set data.test_fraction above 0 or data.eval_path, or give more "
            "examples"
        )
    if training and not num_examples["validation"] and config.validation_fraction > 0:
        raise DataError(
            f"no validation example is left{why} ({shown}) though data.validation_fraction is "
            f"{config.validation_fraction}; give more examples, or set it to 0"
        )


def _select(
    by_name: dict[str, list[Example]], limits: Mapping[str, int | None], split_seed: int, dropped: Counter[str]
) -> None:
    """Put each split in its order and cut it to its limit, counting what is cut."""
    for name, found in by_name.items():
        found.sort(key=lambda example: _place(split_seed, "select", example.content_hash))
        by_name[name] = found[: limits.get(name)]
        dropped[f"over the limit of {name} examples"] = len(found) - len(by_name[name])


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
