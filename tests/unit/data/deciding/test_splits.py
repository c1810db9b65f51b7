"""Splits follow from content; every row is kept or left out for a reason; nothing like a test row is trained on."""

import dataclasses
import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.config.data import FilesConfig
from llmtune.data.cleaning.fingerprints import exact_key, fingerprint
from llmtune.data.cleaning.groups import find, join, lowest_of
from llmtune.data.cleaning.measures import measure
from llmtune.data.cleaning.near_duplicates import NearClusters, NearPair
from llmtune.data.deciding import splits as module
from llmtune.data.deciding.decisions import (
    DUPLICATE,
    IN_TEST_FILE,
    OVERLAP,
    REASONS,
    SPLITS,
    STRADDLES,
    THINNED,
    ScanColumns,
)
from llmtune.data.deciding.splits import (
    check_not_empty,
    decide,
    group_key,
    needs_near,
    select_place,
    split_place,
    why_too_few,
)
from llmtune.data.records import Record, content_hash
from llmtune.errors import DataError

pytestmark = pytest.mark.fast

CONFIG = FilesConfig(duplicates="keep", outliers="ignore")
WIDE = dataclasses.replace(CONFIG, test_fraction=0.3, validation_fraction=0.2)


def texts(count, first=0):
    return [Record("f", number + 1, text=f"text {number}") for number in range(first, first + count)]


def columns_of(records, held_out=(), seed=0, sources=None):
    """What a scan finds; `held_out` is the test file."""
    rows = [*records, *held_out]
    hashes = [content_hash(row) for row in rows]
    measures = measure(rows)
    return ScanColumns(
        source=np.array(sources if sources is not None else [0] * len(records) + [1] * len(held_out), np.int16),
        is_eval=np.arange(len(rows)) >= len(records),
        line=np.array([row.source_line for row in rows], np.int64),
        exact=np.array([exact_key(digest) for digest in hashes], np.uint64).reshape(-1, 2),
        normalised=fingerprint(rows, hashes, near=False).normalised,
        place=np.array([split_place(seed, *row) for row in zip(rows, hashes, strict=True)]),
        select_place=np.array([select_place(seed, digest) for digest in hashes]),
        group=np.array([group_key(row) for row in rows], np.uint64),
        num_words=measures.num_words,
        repetition=measures.repetition,
        odd_share=measures.odd_share,
        personal=np.zeros(len(rows), np.uint32),
    )


def near_of(labels):
    """Clusters of rows that share a label, directly or by way of others; a row may have several labels."""
    roots = np.arange(len(labels))
    first = {}
    for row, own in enumerate(labels):
        for label in own:
            join(roots, np.array([row]), np.array([first.setdefault(label, row)]))
    return NearClusters(find(roots, np.arange(len(roots))), [])


def split(config, records, held_out=(), near=None):
    """The decisions and the texts of each split in their order."""
    decisions = decide(columns_of(records, held_out, config.split_seed), config, near)
    rows = [*records, *held_out]
    return decisions, {name: [rows[row].text for row in decisions.order(name)] for name in SPLITS}


def contents(config, records, held_out=()):
    return {name: set(found) for name, found in split(config, records, held_out)[1].items()}


def accounted(decisions):
    """Rows kept and rows left out with a reason."""
    assert ((decisions.split >= 0) == (decisions.reason == 0)).all()
    return sum(decisions.num_kept().values()) + sum(decisions.num_dropped().values())


def test_places_are_these():
    record = Record("f", 1, text="a")

    def place(key):
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48

    assert split_place(3, record, "h") == place("split\x1f3\x1fh")
    assert split_place(3, dataclasses.replace(record, group="g"), "h") == place("split\x1f3\x1fg")
    assert select_place(3, "h") == place("select\x1f3\x1fh")
    assert group_key(record) == 0 < group_key(dataclasses.replace(record, group="g")) < 2**64


def test_shares_are_about_the_fractions_and_nothing_is_lost():
    found = contents(FilesConfig(), texts(4000))
    assert sum(len(names) for names in found.values()) == len(set.union(*found.values())) == 4000
    assert 340 < len(found["test"]) < 460
    assert 150 < len(found["validation"]) < 250


def test_the_split_is_by_place_and_the_order_by_the_other_place():
    columns = columns_of(texts(300))
    decisions = decide(columns, CONFIG, None)
    test, validation = columns.place < 0.1, columns.place < 0.1 + 0.05
    assert decisions.split.tolist() == np.where(test, 2, np.where(validation, 1, 0)).tolist()
    for name in SPLITS:
        assert (np.diff(columns.select_place[decisions.order(name)]) > 0).all()


def test_order_and_other_examples_do_not_move_an_example():
    before = contents(FilesConfig(), texts(500))
    after = contents(FilesConfig(), [*texts(500, first=500), *reversed(texts(500))])
    assert all(before[name] <= after[name] for name in SPLITS)
    assert split(FilesConfig(), texts(500))[1] == split(FilesConfig(), texts(500)[::-1])[1]


def test_another_split_seed_gives_other_splits():
    one, two = (contents(FilesConfig(split_seed=seed), texts(500)) for seed in (0, 1))
    assert one["test"] != two["test"]


# What holds for any rows. A row: its content (case tells normalised duplicates apart), labels that make rows nearly
# the same, and a named group.
ROWS = st.lists(
    st.tuples(
        st.sampled_from([f"row {n}" for n in range(25)] + [f"ROW {n}" for n in range(25)]),
        st.lists(st.integers(0, 12), max_size=2),
        st.sampled_from([None, None, None, *(f"group {n}" for n in range(6))]),
    ),
    max_size=25,
)
CONFIGS = st.builds(
    FilesConfig,
    duplicates=st.sampled_from(["keep", "exact", "normalised", "near"]),
    outliers=st.just("ignore"),
    test_fraction=st.just(0.3),
    validation_fraction=st.just(0.2),
)
FILLER = [(f"filler {n}", [], None) for n in range(80)]  # so that no split is empty, and no cluster too large
thorough = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def decide_rows(rows, config):
    records = [Record("f", n, text=content, group=group) for n, (content, _, group) in enumerate(rows)]
    columns = columns_of(records)
    near = near_of([[("content", content.lower()), *labels] for content, labels, _ in rows])
    return decide(columns, config, near), near.ids


def assert_no_straddling(rows, config):
    decisions, ids = decide_rows(rows, config)
    assert accounted(decisions) == len(rows)
    for keys in (ids.tolist(), [group or number for number, (_, _, group) in enumerate(rows)]):
        found = {(key, split) for key, split in zip(keys, decisions.split.tolist(), strict=True) if split >= 0}
        assert max(Counter(key for key, _ in found).values()) == 1
    assert decisions.num_kept()["test"]


def assert_test_rows_stay(old, new, order, config):
    before = decide_rows(old, config)[0]
    rows = [([*old, *new])[place] for place in order]
    after = decide_rows(rows, config)[0]
    tested = {old[row][0] for row in before.order("test")}
    for name in ("train", "validation"):
        assert not tested & {rows[row][0] for row in after.order(name)}


@thorough
@given(ROWS, CONFIGS)
def test_neither_groups_nor_like_rows_straddle_and_every_row_is_accounted_for(rows, config):
    assert_no_straddling(rows + FILLER, config)


@thorough
@given(ROWS, ROWS, CONFIGS, st.randoms(use_true_random=False))
def test_more_rows_move_no_test_row(old, new, config, rng):
    old = old + FILLER
    order = list(range(len(old) + len(new)))
    rng.shuffle(order)
    assert_test_rows_stay(old, new, order, config)


@thorough
@given(ROWS, CONFIGS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_split(rows, config, rng):
    rows = rows + FILLER
    shuffled = rng.sample(rows, len(rows))
    one, two = ((decide_rows(which, config)[0], which) for which in (rows, shuffled))
    for name in SPLITS:
        # Of several alike the first is kept, whichever that is; all else is the same.
        exact = config.duplicates in ("keep", "exact")
        kept = [Counter(which[row][0] if exact else 0 for row in found.order(name)) for found, which in (one, two)]
        assert kept[0] == kept[1]


def examples_that_break(check, rows_of):
    """How many of some random cases a check refuses."""
    rng, broken = np.random.default_rng(0), 0
    for _ in range(40):
        try:
            check(rows_of(rng))
        except AssertionError:
            broken += 1
    return broken


def random_rows(rng):
    return [(f"row {n}", rng.integers(0, 12, 2).tolist(), None) for n in rng.integers(0, 25, 20)]


def none_of(groups, flags):
    return np.zeros(len(groups), bool)


def test_control_without_clusters_like_rows_straddle(monkeypatch):
    def check(rows):
        assert_no_straddling(rows + FILLER, WIDE)

    assert examples_that_break(check, random_rows) == 0
    monkeypatch.setattr(module, "any_of", none_of)
    assert examples_that_break(check, random_rows) == 0  # without named groups one place for all that are alike does it
    monkeypatch.setattr(module, "lowest_of", lambda groups, values: values)
    assert examples_that_break(check, random_rows) > 10


def test_control_like_rows_of_named_groups_straddle_where_none_is_left_out(monkeypatch):
    def check(rows):
        rows = [(content, labels, f"group {number}") for number, (content, labels, _) in enumerate(rows)]
        assert_no_straddling(rows + FILLER, WIDE)

    assert examples_that_break(check, random_rows) == 0
    monkeypatch.setattr(module, "any_of", none_of)
    assert examples_that_break(check, random_rows) > 10


def test_control_by_the_highest_place_test_rows_would_move(monkeypatch):
    def check(rows):
        old = rows[:10] + FILLER
        assert_test_rows_stay(old, rows[10:], range(len(old) + 10), dataclasses.replace(WIDE, test_fraction=0.5))

    assert examples_that_break(check, random_rows) == 0
    monkeypatch.setattr(module, "lowest_of", lambda groups, values: 1 - lowest_of(groups, 1 - values))
    assert examples_that_break(check, random_rows) > 0


def test_a_group_never_straddles():
    records = [Record("f", n, text=f"text {n}", group=f"module {n % 40}") for n in range(400)]
    decisions, _ = split(FilesConfig(), records)
    groups = {name: {records[row].group for row in decisions.order(name)} for name in SPLITS}
    assert all(groups.values())
    assert sum(len(names) for names in groups.values()) == 40


def by_split(config, count=400):
    """A text of each split, by its own place."""
    decisions, found = split(config, texts(count))
    assert not decisions.num_dropped()
    return {name: found[name][0] for name in SPLITS}


@pytest.mark.parametrize("duplicates", ["keep", "exact", "near"])
def test_a_row_of_a_named_group_that_is_like_a_test_row_of_another_is_left_out(duplicates):
    config = dataclasses.replace(CONFIG, duplicates=duplicates)
    named = [f"module {n}" for n in range(200)]
    places = {name: split_place(0, Record("f", 1, text="", group=name), "") for name in named}
    trained, validated, tested = (
        next(name for name in named if low <= places[name] < high) for low, high in ((0.2, 1), (0.1, 0.15), (0, 0.1))
    )
    records = [
        *texts(300),
        Record("f", 301, text="a b c", group=trained),
        Record("f", 302, text="A, b, c", group=tested),
        Record("f", 303, text="d e f", group=trained),
        Record("f", 304, text="d e f g", group=validated),
        Record("f", 305, text="h", group=trained),
        Record("f", 306, text="h", group=tested),
    ]
    near = near_of([[n] for n in range(300)] + [["a"], ["a"], ["d"], ["d"], ["h"], ["h"]])
    decisions, _ = split(config, records, near=near)
    reasons = [REASONS[reason] for reason in decisions.reason[300:]]
    assert (
        reasons
        == {
            "keep": [STRADDLES["test"], "", STRADDLES["validation"], "", STRADDLES["test"], ""],
            "exact": [STRADDLES["test"], "", STRADDLES["validation"], "", DUPLICATE["exact"], ""],
            "near": [DUPLICATE["normalised"], "", DUPLICATE["near"], "", DUPLICATE["exact"], ""],
        }[duplicates]
    )
    assert decisions.split[301] == decisions.split[305] == 2
    assert decisions.split[303] == 1
    if duplicates == "keep":
        assert (decisions.overlap.exact, decisions.overlap.normalised, decisions.overlap.near) == (1, 1, 0)
        assert decisions.overlap.listed == [(300, 301), (304, 305)]


@pytest.mark.parametrize(
    ("duplicates", "dropped"),
    [
        ("keep", {}),
        ("exact", {DUPLICATE["exact"]: 2}),
        ("normalised", {DUPLICATE["exact"]: 2, DUPLICATE["normalised"]: 1}),
        ("near", {DUPLICATE["exact"]: 2, DUPLICATE["normalised"]: 1, DUPLICATE["near"]: 1}),
    ],
)
def test_the_first_of_each_likeness_is_kept(duplicates, dropped):
    records = [*texts(200), Record("f", 99, text="text 7\r\n"), Record("f", 100, text="text 8"), *[None] * 2]
    records[202:] = [Record("f", 101, text="Text, 9!"), Record("f", 102, text="text 9 and more")]
    near = near_of([[n] for n in range(202)] + [[9], [9]])
    near.listed.append(NearPair(9, 203, 0.9))
    decisions, _ = split(dataclasses.replace(FilesConfig(), duplicates=duplicates), records, near=near)
    assert decisions.num_dropped() == dropped
    assert (decisions.reason[:200] == 0).all()
    found = decisions.duplicates
    assert (found.exact, found.normalised, found.near, found.num_groups) == (2, 1, 1, 3)
    assert found.listed == [(7, 200, 1.0), (8, 201, 1.0), (9, 202, 1.0), (9, 203, 0.9)]
    assert decisions.split[7] == decisions.split[200] or dropped


def test_one_held_out_holds_out_all_that_are_like_it():
    found = by_split(CONFIG)
    records = texts(400)
    row = {name: next(n for n, record in enumerate(records) if record.text == found[name]) for name in SPLITS}
    near = near_of([["same"] if n in row.values() else [n] for n in range(400)])
    decisions, _ = split(CONFIG, records, near=near)
    assert decisions.split[list(row.values())].tolist() == [2, 2, 2]
    pair = near_of([["same"] if n in (row["train"], row["validation"]) else [n] for n in range(400)])
    decisions, _ = split(CONFIG, records, near=pair)
    assert decisions.split[[row["train"], row["validation"]]].tolist() == [1, 1]


def test_a_large_cluster_that_fills_the_test_set_is_said_aloud():
    near = near_of([["same"] if n < 95 else [n] for n in range(400)])
    decisions, _ = split(CONFIG, texts(400), near=near)
    said = next(warning for warning in decisions.warnings if "nearly the same words" in warning)
    assert " of 400 examples are in test, though data.test_fraction is 0.1" in said
    assert "data.duplicates=near" in said
    assert not split(CONFIG, texts(400))[0].warnings


def common(count, of=400):
    """Near-duplicates of one another, the first of all rows."""
    return near_of([["same"] if n < count else [n] for n in range(of)])


@pytest.mark.parametrize(
    ("count", "of", "is_apart"), [(100, 400, False), (101, 400, True), (19, 40, False), (20, 40, True)]
)
def test_a_cluster_of_too_large_a_share_is_taken_apart_and_said(count, of, is_apart):
    config = dataclasses.replace(CONFIG, test_fraction=0.3)
    columns = columns_of(texts(of))
    decisions = decide(columns, config, common(count, of))
    alone = decide(columns, config, None)
    assert (decisions.split.tolist() == alone.split.tolist()) == is_apart
    said = [warning for warning in decisions.warnings if "common prompt" in warning]
    assert [warning.startswith(f"{count} of {of} rows share most of their words") for warning in said] == [
        True
    ] * is_apart
    assert decisions.duplicates.near == (0 if is_apart else count - 1)
    assert not any("are held out together" in warning for warning in decisions.warnings if is_apart)


def test_what_is_equal_stays_together_and_counts_once_where_a_cluster_is_taken_apart():
    records = [Record("f", n, text=f"text {n // 2}" if n % 4 else f"TEXT, {n // 2}!") for n in range(400)]
    decisions, _ = split(CONFIG, records, near=common(300))
    assert (decisions.split[::2] == decisions.split[1::2]).all()
    assert set(decisions.split[:300].tolist()) == {0, 1, 2}
    assert (decisions.duplicates.normalised, decisions.duplicates.exact, decisions.duplicates.near) == (100, 100, 0)
    copies = [Record("f", n, text="the same" if n < 300 else f"text {n}") for n in range(400)]
    near = near_of([["same"] if n < 310 else [n] for n in range(400)])
    decisions, _ = split(CONFIG, copies, near=near)
    assert len(set(decisions.split[:310].tolist())) == 1
    assert decisions.duplicates.near == 10


def test_a_cluster_of_too_large_a_share_is_dropped_where_that_is_asked():
    decisions, _ = split(dataclasses.replace(CONFIG, duplicates="near"), texts(400), near=common(300))
    assert decisions.num_dropped() == {DUPLICATE["near"]: 299}
    assert not any("common prompt" in warning for warning in decisions.warnings)


def test_a_cluster_that_is_taken_apart_overlaps_with_a_test_file_only_where_it_is_equal():
    held_out = [*texts(1, first=7), Record("e", 2, text="TEXT 8"), Record("e", 3, text="like them all")]
    config = FilesConfig(eval_path="e")
    for count, lost in ((100, 2), (20, 20)):
        near = near_of([["same"] if n < count or n >= 100 else [n] for n in range(103)])
        decisions, _ = split(config, texts(100), held_out, near)
        assert sum(decisions.num_dropped().values()) == lost
        assert (decisions.overlap.exact, decisions.overlap.normalised) == (1, 1)
        assert decisions.overlap.near == lost - 2


SIZES = (50, 100, 200, 400)


def assert_nested(by_size):
    """Each size's training set is the start of the next one's; validation and test set are the same."""
    for small, large in itertools.pairwise(by_size):
        assert large["train"][: len(small["train"])] == small["train"]
        assert len(small["train"]) < len(large["train"])
        assert (small["validation"], small["test"]) == (large["validation"], large["test"])


def test_smaller_sets_are_part_of_larger_ones():
    limits = [
        FilesConfig(num_examples=n, num_validation_examples=n // 10, num_test_examples=n // 5) for n in (100, 300)
    ]
    (decisions, small), (_, large) = (split(config, texts(900)) for config in limits)
    for name, count in (("train", 100), ("validation", 10), ("test", 20)):
        assert len(small[name]) == count
        assert large[name][:count] == small[name]
    assert decisions.num_dropped()["over the limit of train examples"] > 500
    assert accounted(decisions) == 900


def test_more_training_examples_move_neither_validation_nor_test_set():
    assert_nested([split(FilesConfig(num_examples=n), texts(900))[1] for n in SIZES])
    config = dataclasses.replace(FilesConfig(), eval_path="e", num_validation_examples=16)
    by_size = [dataclasses.replace(config, num_examples=n) for n in SIZES]
    assert_nested([split(sized, texts(900), texts(60, first=850))[1] for sized in by_size])
    grouped = [Record("f", n, text=f"text {n}", group=f"module {n % 90}") for n in range(900)]
    assert_nested([split(FilesConfig(num_examples=n), grouped)[1] for n in SIZES])
    with pytest.raises(AssertionError):  # control: another seed gives other sets
        assert_nested([split(FilesConfig(num_examples=n, split_seed=n), texts(900))[1] for n in SIZES])


def test_a_set_larger_than_the_pool_is_the_whole_pool():
    whole, more = (split(FilesConfig(num_examples=n), texts(200))[1] for n in (None, 4000))
    assert more == whole


def test_an_eval_file_is_the_whole_test_set_and_its_examples_are_neither_trained_nor_validated_on():
    config = FilesConfig(eval_path="e", num_test_examples=3, validation_fraction=0.3, min_words=2)
    held_out = [*texts(60, first=50), *texts(1, first=99), Record("e", 9, text="short")]
    without = contents(config, texts(100), texts(1, first=1000))
    assert without["train"] & {record.text for record in held_out}  # both splits held some of them
    assert without["validation"] & {record.text for record in held_out}
    decisions, found = split(config, texts(100), held_out)
    assert {*found["train"], *found["validation"]} == {f"text {n}" for n in range(50)}
    assert {*found["train"]} <= without["train"]
    assert {*found["test"]} == {f"text {n}" for n in range(50, 110)} | {"short"}
    is_eval = np.arange(162) >= 100
    assert decisions.num_dropped(~is_eval) == {IN_TEST_FILE: 50}
    assert decisions.num_dropped(is_eval) == {DUPLICATE["exact"]: 1}
    assert decisions.overlap.exact == 50
    assert decisions.overlap.listed[0] == (50, 100)


def test_what_is_like_the_eval_file_is_left_out_at_every_likeness():
    records = [*texts(50), Record("f", 51, text="Held, OUT!"), Record("f", 52, text="held out and more")]
    near = near_of([[n] for n in range(51)] + [["h"], ["h"]])
    decisions, found = split(FilesConfig(eval_path="e"), records, [Record("e", 1, text="held out")], near)
    assert decisions.num_dropped() == {OVERLAP["normalised"]: 1, OVERLAP["near"]: 1}
    assert (decisions.overlap.exact, decisions.overlap.normalised, decisions.overlap.near) == (0, 1, 1)
    assert decisions.overlap.listed == [(50, 52), (51, 52)]
    assert len(found["train"]) + len(found["validation"]) == 50
    without, _ = split(FilesConfig(eval_path="e"), records, [Record("e", 1, text="held out")])
    assert without.num_dropped() == {OVERLAP["normalised"]: 1}  # found always; near only where it's looked for


def test_a_limit_counts_the_examples_that_are_not_in_the_eval_file():
    found = split(FilesConfig(eval_path="e", num_examples=20), texts(100), texts(60))[1]
    assert len(found["train"]) == 20


def test_a_test_file_that_takes_all_examples_leaves_no_training_but_can_be_measured():
    config = FilesConfig(eval_path="e")
    decisions, found = split(config, texts(10), texts(10))
    num_examples = {name: len(rows) for name, rows in found.items()}
    assert num_examples == {"train": 0, "validation": 0, "test": 10} == decisions.num_kept()
    with pytest.raises(DataError, match=r"no training example is left \(.*\); give more examples$"):
        check_not_empty(num_examples, config)
    with pytest.raises(DataError, match="no test example"):
        check_not_empty({**num_examples, "test": 0}, config, training=False)
    assert split(config, [], texts(3))[1]["test"]


def numbered(count, *, low, high=1.0):
    """Texts whose places lie within bounds."""
    found = (Record("f", 1, text=f"text {n}") for n in itertools.count())
    fit = (record for record in found if low <= split_place(0, record, content_hash(record)) < high)
    return list(itertools.islice(fit, count))


def test_an_empty_test_set_is_refused_with_the_smallest_fraction_that_would_hold_one_out():
    records = numbered(5, low=0.3) + numbered(1, low=0.22, high=0.23) + numbered(1, low=0.24, high=0.27)
    with pytest.raises(DataError) as refused:
        split(FilesConfig(), records)
    assert str(refused.value) == (
        "no test example is left (train 7, validation 0, test 0); data.test_fraction=0.23 holds out 1 example; or give "
        "more examples or set data.eval_path"
    )
    decisions, _ = split(FilesConfig(test_fraction=0.23), records)
    assert decisions.num_kept() == {"train": 5, "validation": 1, "test": 1}
    with pytest.raises(DataError, match="no test example"):  # it is the smallest
        split(FilesConfig(test_fraction=0.22), records)


def test_both_fractions_are_named_where_both_splits_are_empty():
    records = numbered(5, low=0.4) + numbered(1, low=0.22, high=0.23) + numbered(2, low=0.3, high=0.31)
    with pytest.raises(
        DataError, match=r"data\.test_fraction=0\.23 data\.validation_fraction=0\.08 hold out 1 and 2 ex"
    ):
        split(FilesConfig(), records)
    decisions, _ = split(FilesConfig(test_fraction=0.23, validation_fraction=0.08), records)
    assert decisions.num_kept() == {"train": 5, "validation": 2, "test": 1}


@pytest.mark.parametrize("count", range(1, 9))
def test_the_fractions_that_are_named_work(count):
    for first in range(0, 50, count):
        try:
            split(FilesConfig(), texts(count, first))
        except DataError as error:
            words = str(error).replace(";", "").split()
            named = {key[len("data.") :]: float(value) for key, _, value in (w.partition("=") for w in words) if value}
            assert named or count < 3 or "no training" in str(error)
            if named:
                split(FilesConfig(**{"test_fraction": 0.1, "validation_fraction": 0.05} | named), texts(count, first))


def test_no_fraction_is_named_where_none_leaves_an_example_to_train_on():
    with pytest.raises(
        DataError, match=r"\(train 1, validation 0, test 0\); give more examples or set data.eval_path$"
    ):
        split(FilesConfig(), numbered(1, low=0.5))


@pytest.mark.parametrize(
    ("config", "records", "message"),
    [
        (FilesConfig(), numbered(3, low=0, high=0.1), r"no training example is left \(train 0, validation 0, test 3\)"),
        (
            FilesConfig(test_fraction=0.0),
            texts(9),
            r"no test example.*data\.test_fraction=0\.\d+ .*holds? out .*eval_path",
        ),
        (
            FilesConfig(min_words=9),
            texts(9),
            r"no training .* after 9 were left out \(fewer words than data.min_words 9\)",
        ),
    ],
)
def test_an_empty_split_is_refused_with_the_cure(config, records, message):
    with pytest.raises(DataError, match=message):
        split(config, records)


def test_validation_may_be_empty_only_where_it_is_turned_off():
    records = numbered(20, low=0.2) + numbered(2, low=0, high=0.1)
    assert split(FilesConfig(validation_fraction=0.0), records)[1]["validation"] == []
    with pytest.raises(
        DataError, match=r"no validation .*data\.validation_fraction=.* hold.* 0 goes without validation"
    ):
        split(FilesConfig(), records)


def test_a_small_test_set_is_said_with_the_cure():
    assert why_too_few(20, CONFIG) is None
    assert why_too_few(1, CONFIG) == (
        "the test set holds 1 example, too few for any claim: below 20 a comparison makes none; give a larger "
        "data.test_fraction, more examples or data.eval_path"
    )
    assert why_too_few(19, FilesConfig(eval_path="e")) == (
        "the test set holds 19 examples, too few for any claim: below 20 a comparison makes none; give more examples"
    )


def test_bounds_personal_data_and_outliers_leave_rows_out_in_this_order():
    sized = [Record("f", 1, text=" ".join(["w"] * n)) for n in (1, 30, 5000)]
    records = [*texts(300), *sized, Record("f", 1, text="mojibÃ©ke Ã©Ã©"), Record("f", 1, text="so it goes " * 40)]
    columns = columns_of(records)
    columns.personal[[5, 300]] = 1
    config = FilesConfig(
        min_words=2, max_words=1000, personal_data="drop", outliers="drop", validation_fraction=0.1, test_fraction=0.2
    )
    decisions = decide(columns, config, None)
    assert [REASONS[decisions.reason[row]] for row in (300, 302, 5, 303)] == [
        "fewer words than data.min_words",
        "more words than data.max_words",
        "personal data",
        "outlier: characters",
    ]
    assert REASONS[decisions.reason[304]] in ("outlier: length", "outlier: repetition")
    assert REASONS[decisions.reason[301]] == "outlier: length"
    assert accounted(decisions) == 305
    assert decisions.outliers["characters"].tolist() == [303]
    reported = decide(columns, dataclasses.replace(config, outliers="report"), None)
    assert reported.outliers["characters"].tolist() == [303]
    assert reported.reason[303] == 0
    assert decide(columns, dataclasses.replace(config, outliers="ignore"), None).outliers == {}


def test_weights_repeat_and_thin_training_rows_only():
    sources = np.arange(1000) % 2
    columns = columns_of(texts(1000), sources=sources)
    once = decide(columns, CONFIG, None, [1.0, 1.0])
    weighed = decide(columns, CONFIG, None, [2.5, 0.25])
    for name in ("validation", "test"):
        assert weighed.order(name).tolist() == once.order(name).tolist()
    train, rows = np.flatnonzero(once.split == 0), Counter(weighed.order("train").tolist())
    times = {source: [rows[row] for row in train if sources[row] == source] for source in (0, 1)}
    assert {*times[0]} == {2, 3}
    assert {*times[1]} == {0, 1}
    assert np.mean(times[0]) == pytest.approx(2.5, abs=0.08)
    assert np.mean(times[1]) == pytest.approx(0.25, abs=0.06)
    assert weighed.num_dropped() == {THINNED: times[1].count(0)}
    assert weighed.num_repeated() == sum(times[0]) - len(times[0])
    assert accounted(weighed) == 1000
    limited = decide(columns, dataclasses.replace(CONFIG, num_examples=100), None, [1.0, 0.25])
    shares = Counter(sources[limited.order("train")].tolist())
    assert 0.1 < shares[1] / 100 < 0.35  # a fifth: the limit keeps the mixture


def test_near_duplicates_are_needed_where_they_are_found_or_dropped():
    assert needs_near(FilesConfig())
    assert needs_near(FilesConfig(find_near_duplicates=False, duplicates="near"))
    assert not needs_near(FilesConfig(find_near_duplicates=False))


def test_what_is_an_outlier_is_judged_by_its_own_source():
    short = [Record("a", n + 1, text=" ".join(f"w{n}x{k}" for k in range(8 + n % 30))) for n in range(200)]
    long = [Record("b", n + 1, text=" ".join(f"v{n}x{k}" for k in range(400 + 5 * n))) for n in range(60)]
    config = dataclasses.replace(WIDE, outliers="drop")
    apart = decide(columns_of([*short, *long], sources=[0] * 200 + [1] * 60), config, None)
    assert not len(apart.outliers["length"])
    pooled = decide(columns_of([*short, *long], sources=[0] * 260), config, None)  # the control
    assert len(pooled.outliers["length"]) > 20


def test_a_group_that_stands_in_the_test_file_is_left_out_of_training():
    rows = [Record("f", n + 1, text=f"text {n}", group=f"g{n % 20}") for n in range(200)]
    held_out = [Record("e", n + 1, text=f"other {n}", group=f"g{n % 5}" if n < 25 else None) for n in range(30)]
    columns = columns_of(rows, held_out)
    decisions = decide(columns, dataclasses.replace(WIDE, eval_path="e"), None)
    shared = np.array([int(row.group[1:]) < 5 for row in rows])
    assert (decisions.split[:200][shared] == -1).all()
    assert (decisions.split[:200][~shared] >= 0).all()
    assert decisions.num_dropped() == {"of a group that also stands in the test file": 50}
    assert decisions.overlap.listed == []
