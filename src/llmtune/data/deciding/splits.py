"""Which row falls into which split and which are left out: by content, never by order."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llmtune.config.data import DataConfig
from llmtune.data.cleaning.groups import Flags, Indices, any_of, best_of, every_row, lowest_of
from llmtune.data.cleaning.near_duplicates import NearClusters
from llmtune.data.cleaning.outliers import KINDS, Measured, find_outliers
from llmtune.data.deciding.decisions import (
    DROPPED,
    DUPLICATE,
    IN_TEST_GROUP,
    LEVELS,
    LONG,
    OUTLIER,
    OVER_LIMIT,
    OVERLAP,
    PERSONAL,
    REASONS,
    SHORT,
    SPLITS,
    STRADDLES,
    TEST,
    THINNED,
    TRAIN,
    VALIDATION,
    Decisions,
    Duplicates,
    Overlap,
    ScanColumns,
)
from llmtune.data.deciding.likeness import clusters_of, find_likeness
from llmtune.data.records import Record
from llmtune.errors import DataError

FEWEST_TEST_EXAMPLES = 20
"""With fewer a comparison makes no claim."""

_MOST_LISTED = 200
_TOO_LARGE = 2.0  # times the fraction: so much of the data in a split is said aloud


def split_place(split_seed: int, record: Record, content_hash: str) -> float:
    """Where a record stands in [0, 1): the lowest places are held out. By its group's name, else by its content."""
    return _place(split_seed, "split", record.group or content_hash)


def select_place(split_seed: int, content_hash: str) -> float:
    """Where a record stands in its split: a limit keeps the lowest."""
    return _place(split_seed, "select", content_hash)


def group_key(record: Record) -> int:
    """A 64-bit hash of the name of a record's group; 0 where it has none."""
    if not record.group:
        return 0
    return int.from_bytes(hashlib.blake2b(record.group.encode("utf-8", "surrogatepass"), digest_size=8).digest()) or 1


def needs_near(config: DataConfig) -> bool:
    """Whether near-duplicates have to be looked for."""
    return config.find_near_duplicates or config.duplicates == "near"


def decide(
    columns: ScanColumns, config: DataConfig, near: NearClusters | None, weights: Sequence[float] = ()
) -> Decisions:
    """Decide what becomes of each row.

    A row's place follows from its content (its group's name, where it has one) and `split_seed`; the lowest places
    are the test set, those above them validation. Rows of the same words, and those that were found to be nearly the
    same, have the lowest place of them all, so that none straddles, and no further row moves one out of the test set.
    Near-duplicates can be missed: a row is compared with 15 others at most of those that share a part of its signature.
    Where a cluster of near-duplicates holds more than a quarter of the training rows, and 20 or more, they have a
    prompt in common rather than being the same: only those of the same words stay together, and a cluster that grows
    to be one gives back the test rows that it held. Rows of a named group keep the group's place: where they are like a
    row that is held out with another, they are left out. The rows that a limit keeps are part of those that a higher
    limit keeps. A test file is the test set as a whole.

    Args:
        columns: the rows.
        config: what is left out, fractions, limits and seed.
        near: clusters of near-duplicates over the same rows; None where they weren't looked for.
        weights: how often an epoch takes the training rows of each source; empty is once.

    Raises:
        DataError: a split that is asked for is empty; training and validation only where the test file isn't why.
    """
    table = _Table(columns, config, near)
    table.drop_unfit()
    duplicates = table.drop_duplicates()
    overlap = table.drop_overlap()
    fit = ~columns.is_eval & table.alive
    warnings = [*table.taken_apart(), *_crowded(columns.place[fit], table.places[fit], config)]
    table.weigh(weights)
    table.limit()
    num_kept = {name: int(np.count_nonzero(table.split == place)) for place, name in enumerate(SPLITS)}
    training = bool((~columns.is_eval).any()) and not (config.eval_path and overlap.listed)
    cure = "" if all(num_kept.values()) else _smallest_fractions(table.places[fit], config)
    check_not_empty(num_kept, config, table.left_out(), training=training, cure=cure)
    return Decisions(
        split=table.split,
        reason=table.reason,
        times=table.times,
        duplicates=duplicates,
        overlap=overlap,
        outliers=table.outliers,
        warnings=warnings,
        select_place=columns.select_place,
        clusters=table.clusters,
    )


class _Table:
    """The rows, while it is being decided what becomes of them."""

    def __init__(self, columns: ScanColumns, config: DataConfig, near: NearClusters | None) -> None:
        self._columns = columns
        self._config = config
        self._is_train = ~columns.is_eval
        self._likeness = find_likeness(columns, near, takes_apart=config.duplicates != "near")
        self._ids = self._likeness.ids
        self.reason = np.zeros(len(columns.line), np.uint8)
        self.outliers: dict[str, Indices] = {}
        together = lowest_of(self._ids["near"], np.where(self._is_train, columns.place, 1.0))
        self.places = np.where(columns.group == 0, together, columns.place)
        self.split = np.where(columns.is_eval, np.int8(TEST), _by_place(self.places, config))
        self.times = np.ones(len(columns.line), np.int32)

    @property
    def alive(self) -> Flags:
        return self.reason == 0

    @property
    def clusters(self) -> Indices:
        return clusters_of(self._columns, self._ids["near"])

    def taken_apart(self) -> Iterator[str]:
        """A warning where rows that are much alike aren't kept together, since they are too many."""
        if num_apart := self._likeness.num_apart:
            yield (
                f"{num_apart:,} of {np.count_nonzero(self._is_train):,} rows share most of their words with many "
                "others (a common prompt?), so they aren't kept together and test examples may be like "
                "training ones; a higher data.near_duplicate_threshold tells them apart, data.duplicates=near keeps one"
            )

    def left_out(self) -> str:
        """How many rows were left out and why, for a message; empty where none was."""
        counts = np.bincount(self.reason, minlength=len(REASONS))[1:]
        shown = ", ".join(f"{REASONS[place + 1]} {counts[place]}" for place in np.argsort(-counts)[:3] if counts[place])
        return f" after {counts.sum()} were left out ({shown})" if shown else ""

    def _drop(self, rows: Flags, reason: str) -> None:
        rows = rows & self.alive
        self.reason[rows] = REASONS.index(reason)
        self.split[rows] = DROPPED
        self.times[rows] = 0

    def drop_unfit(self) -> None:
        """Leave out rows that are too short or long, hold personal data or are outliers.

        A test file is measured whole, but for personal data.
        """
        config, columns = self._config, self._columns
        self._drop(self._is_train & (columns.num_words < (config.min_words or 0)), SHORT)
        self._drop(self._is_train & (columns.num_words > (config.max_words or math.inf)), LONG)
        if config.personal_data == "drop":
            self._drop(columns.personal != 0, PERSONAL)
        if config.outliers == "ignore":
            return
        found = {kind: np.zeros(len(self.split), np.bool_) for kind in KINDS}
        for source in np.unique(columns.source[self._is_train]):  # what is usual differs from source to source
            among = self._is_train & self.alive & (columns.source == source)
            measured = Measured(columns.num_words[among], columns.repetition[among], columns.odd_share[among])
            for kind, flags in find_outliers(measured).items():
                found[kind][among] = flags
        for kind, rows in found.items():
            self.outliers[kind] = np.flatnonzero(rows)
            if config.outliers == "drop":
                self._drop(rows, OUTLIER[kind])

    def drop_duplicates(self) -> Duplicates:
        """Leave out all but the first of each group, up to the likeness that is asked for.

        Where a named group holds one of them out, the first that is held out stays.
        """
        counted = self._is_train & self.alive
        found = self._duplicates(counted)
        wanted = self._config.duplicates
        for level in () if wanted == "keep" else LEVELS[: LEVELS.index(wanted) + 1]:
            # Highest number first: TEST, VALIDATION, TRAIN.
            kept = best_of(self._ids[level], self._is_train & self.alive, TEST - self.split)
            self._drop(self._is_train & ~kept, DUPLICATE[level])
        if wanted != "keep":
            kept = best_of(self._ids["exact"], self._columns.is_eval & self.alive, TEST - self.split)
            self._drop(self._columns.is_eval & ~kept, DUPLICATE["exact"])
        return found

    def _duplicates(self, counted: Flags) -> Duplicates:
        num = {level: int(np.count_nonzero(np.bincount(ids[counted]))) for level, ids in self._ids.items()}
        sizes = np.bincount(self._ids["near"][counted], minlength=1)
        listed: list[tuple[int, int, float]] = []
        rows = every_row(len(counted))
        firsts = lowest_of(self._ids["normalised"], np.where(counted, rows, rows.dtype.type(len(rows))))
        for row in np.flatnonzero(counted & (firsts < rows))[:_MOST_LISTED]:
            listed.append((int(firsts[row]), int(row), 1.0))
        listed += [
            (pair.first, pair.other, pair.likeness)
            for pair in self._likeness.pairs
            if counted[pair.first] and counted[pair.other] and firsts[pair.first] != firsts[pair.other]
        ]
        return Duplicates(
            exact=int(counted.sum()) - num["exact"],
            normalised=num["exact"] - num["normalised"],
            near=num["normalised"] - num["near"],
            num_groups=int(np.count_nonzero(sizes > 1)),
            listed=listed,
        )

    def drop_overlap(self) -> Overlap:
        """Leave out rows of the training data that are like one of the test file, or like one held out by its group."""
        before = self.alive
        test_file = self._columns.is_eval & self.alive
        for level in LEVELS:
            self._drop(self._is_train & any_of(self._ids[level], test_file), OVERLAP[level])
        groups = self._columns.group
        self._drop(self._is_train & (groups != 0) & np.isin(groups, groups[test_file]), IN_TEST_GROUP)
        for name, place in (("test", TEST), ("validation", VALIDATION)):
            self._drop((self.split < place) & any_of(self._ids["near"], self.split == place), STRADDLES[name])
        in_test = self.split == TEST
        others = [REASONS.index(reason) for reason in (STRADDLES["validation"], IN_TEST_GROUP)]
        overlapping = before & ~self.alive & ~np.isin(self.reason, others)
        within = [int(np.count_nonzero(overlapping & any_of(self._ids[level], in_test))) for level in LEVELS]
        rows = every_row(len(in_test))
        firsts = lowest_of(self._ids["near"], np.where(in_test, rows, rows.dtype.type(len(rows))))
        listed = [(row, int(firsts[row])) for row in np.flatnonzero(overlapping)[:_MOST_LISTED].tolist()]
        return Overlap(within[0], within[1] - within[0], within[2] - within[1], listed)

    def weigh(self, weights: Sequence[float]) -> None:
        """Repeat or thin the training rows of each source; which ones follows from their content."""
        if not weights:
            return
        is_train = self.split == TRAIN
        for number, weight in enumerate(weights):
            rows = is_train & (self._columns.source == number)
            chosen = self._columns.exact[rows, 1] / 2.0**64 < weight - math.floor(weight)
            self.times[rows] = math.floor(weight) + chosen
        self._drop(is_train & (self.times == 0), THINNED)

    def limit(self) -> None:
        """Leave out what is over the limit of a split: the highest places."""
        config = self._config
        limits = [config.num_examples, config.num_validation_examples, config.num_test_examples]
        if self._columns.is_eval.any():
            limits[TEST] = None
        for place, most in enumerate(limits):
            rows = np.flatnonzero(self.split == place)
            order = rows[np.argsort(self._columns.select_place[rows], kind="stable")]
            over = np.zeros(len(self.split), np.bool_)
            over[order[most:] if most is not None else []] = True
            self._drop(over, OVER_LIMIT[SPLITS[place]])


def check_not_empty(
    num_examples: Mapping[str, int], config: DataConfig, why: str = "", *, training: bool = True, cure: str = ""
) -> None:
    """Check that each split that is asked for holds an example.

    Args:
        num_examples: examples by split.
        config: what was asked for.
        why: what emptied a split, for the message; may be empty.
        training: whether training and validation examples are needed; evaluating needs the test set alone.
        cure: the fractions that would hold something out, and how much; may be empty.

    Raises:
        DataError: a split is empty.
    """
    shown = ", ".join(f"{name} {num_examples[name]}" for name in SPLITS)
    more = "give more examples" if config.eval_path else "give more examples or set data.eval_path"
    cure = f"{cure}; or {more}" if cure else more
    if training and not num_examples["train"]:
        raise DataError(f"no training example is left{why} ({shown}); {more}")
    if not num_examples["test"]:
        raise DataError(f"no test example is left{why} ({shown}); {cure}")
    if training and not num_examples["validation"] and config.validation_fraction > 0:
        fraction = f"data.validation_fraction is {config.validation_fraction}"
        raise DataError(
            f"no validation example is left{why} ({shown}) though {fraction}; {cure}; 0 goes without validation"
        )


def _fractions(config: DataConfig) -> dict[str, float]:
    test = {} if config.eval_path else {"test": config.test_fraction}
    return test | {"validation": config.validation_fraction}


def _by_place(places: NDArray[np.float64], config: DataConfig) -> NDArray[np.int8]:
    """The split of each place: the lowest are the test set, those above them validation."""
    split = np.full(len(places), TRAIN, np.int8)
    below = 0.0
    for name, fraction in _fractions(config).items():
        split[(places >= below) & (places < below + fraction)] = SPLITS.index(name)
        below += fraction
    return split


def _smallest_fractions(places: NDArray[np.float64], config: DataConfig) -> str:
    """The smallest fractions that hold something out, where those that were asked for don't, and how much.

    Empty where there are none that leave an example to train on. More than two digits only where places lie close.
    """
    for num_digits in (2, 3, 4):
        settings: list[str] = []
        held_out: list[int] = []
        below = 0.0
        for name, asked in _fractions(config).items():
            above = np.sort(places[places >= below])
            fraction = asked
            if len(above) and above[0] >= below + asked and (asked or name == "test"):
                fraction = _rounded_up(float(above[0]) - below, num_digits)
                settings.append(f"data.{name}_fraction={fraction}")
                held_out.append(int(np.count_nonzero(above < below + fraction)))
            below += fraction
        if below < 1 and (places >= below).any():
            break
    else:
        return ""
    verb = "holds" if len(settings) == 1 else "hold"
    return (
        f"{' '.join(settings)} {verb} out {' and '.join(map(str, held_out))} {_examples(held_out[-1])}"
        if settings
        else ""
    )


def _rounded_up(value: float, num_digits: int) -> float:
    """A little more than the value, so that what lies there is held out."""
    return round((math.floor(value * 10**num_digits) + 1) / 10**num_digits, num_digits)


def why_too_few(num_test: int, config: DataConfig) -> str | None:
    """A warning where the test set holds too few examples for any claim, with the cure; None where it doesn't."""
    if num_test >= FEWEST_TEST_EXAMPLES:
        return None
    cure = "more examples" if config.eval_path else "a larger data.test_fraction, more examples or data.eval_path"
    return (
        f"the test set holds {num_test} {_examples(num_test)}, too few for any claim: below {FEWEST_TEST_EXAMPLES} a "
        f"comparison makes none; give {cure}"
    )


def _crowded(own: NDArray[np.float64], together: NDArray[np.float64], config: DataConfig) -> Iterator[str]:
    """A warning for each split that is far larger than asked for, since like examples are held out together."""
    before, after = _by_place(own, config), _by_place(together, config)
    for name, fraction in _fractions(config).items():
        place = SPLITS.index(name)
        size, size_alone = int(np.count_nonzero(after == place)), int(np.count_nonzero(before == place))
        if size > _TOO_LARGE * size_alone and size - size_alone >= FEWEST_TEST_EXAMPLES:
            yield (
                f"{size:,} of {len(own):,} examples are in {name}, though data.{name}_fraction is {fraction}: "
                "those of nearly the same words are held out together; data.duplicates=near keeps one of each"
            )


def _examples(number: int) -> str:
    return "example" if number == 1 else "examples"


def _place(split_seed: int, purpose: str, key: str) -> float:
    """A place in [0, 1) that depends on the arguments alone, evenly spread over keys."""
    digest = hashlib.sha256(f"{purpose}\x1f{split_seed}\x1f{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
