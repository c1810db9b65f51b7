"""Splits follow from content."""

import dataclasses
import itertools

import pytest

from llmtune.config.data import FilesConfig
from llmtune.data.records import Record, content_hash
from llmtune.data.splits import IN_TEST_FILE, SPLITS, check_not_empty, split_records
from llmtune.errors import DataError

pytestmark = pytest.mark.fast


def texts(count, first=0):
    return [Record("f", number + 1, text=f"text {number}") for number in range(first, first + count)]


def contents(splits):
    return {name: {example.record.text for example in splits.by_name[name]} for name in SPLITS}


def test_shares_are_about_the_fractions_and_nothing_is_lost():
    found = contents(split_records(FilesConfig(), texts(4000), None))
    assert sum(len(names) for names in found.values()) == 4000
    assert len(set.union(*found.values())) == 4000
    assert 340 < len(found["test"]) < 460
    assert 150 < len(found["validation"]) < 250


def test_order_and_other_examples_do_not_move_an_example():
    before = split_records(FilesConfig(), texts(500), None)
    after = split_records(FilesConfig(), [*texts(500, first=500), *reversed(texts(500))], None)
    for name in SPLITS:
        assert contents(before)[name] <= contents(after)[name]
    again = split_records(FilesConfig(), texts(500)[::-1], None)
    assert [[e.record.text for e in again.by_name[name]] for name in SPLITS] == [
        [e.record.text for e in before.by_name[name]] for name in SPLITS
    ]


def test_another_split_seed_gives_other_splits():
    one, two = (contents(split_records(FilesConfig(split_seed=seed), texts(500), None)) for seed in (0, 1))
    assert one["test"] != two["test"]


def test_a_group_never_straddles():
    records = [Record("f", n, text=f"text {n}", group=f"module {n % 40}") for n in range(400)]
    splits = split_records(FilesConfig(), records, None)
    groups = {name: {example.record.group for example in splits.by_name[name]} for name in SPLITS}
    assert all(groups.values())
    assert sum(len(names) for names in groups.values()) == 40


def test_duplicates_are_dropped_and_counted_whatever_their_line_ends():
    records = [*texts(50), Record("f", 99, text="text 7"), Record("f", 100, text="text 8\r\n")]
    splits = split_records(FilesConfig(), records, None)
    assert sum(len(names) for names in contents(splits).values()) == 50
    assert splits.dropped == {"train": {"duplicate": 2}}


def test_smaller_sets_are_part_of_larger_ones():
    small, large = (
        split_records(
            FilesConfig(num_examples=n, num_validation_examples=n // 10, num_test_examples=n // 5), texts(900), None
        )
        for n in (100, 300)
    )
    for name, count in (("train", 100), ("validation", 10), ("test", 20)):
        assert len(small.by_name[name]) == count
        assert large.by_name[name][:count] == small.by_name[name]
    assert small.dropped["train"]["over the limit of train examples"] > 500


SIZES = (50, 100, 200, 400)


def assert_nested(by_size):
    """Each size's training set is the start of the next one's; validation and test set are the same."""
    for small, large in itertools.pairwise(by_size):
        assert large["train"][: len(small["train"])] == small["train"]
        assert len(small["train"]) < len(large["train"])
        assert (small["validation"], small["test"]) == (large["validation"], large["test"])


def test_more_training_examples_move_neither_validation_nor_test_set():
    assert_nested([split_records(FilesConfig(num_examples=n), texts(900), None).by_name for n in SIZES])
    config = dataclasses.replace(FilesConfig(), eval_path="e", num_validation_examples=16)
    held_out = texts(60, first=850)
    assert_nested(
        [split_records(dataclasses.replace(config, num_examples=n), texts(900), held_out).by_name for n in SIZES]
    )


def test_sets_out_of_groups_are_nested_too():
    records = [Record("f", n, text=f"text {n}", group=f"module {n % 90}") for n in range(900)]
    assert_nested([split_records(FilesConfig(num_examples=n), records, None).by_name for n in SIZES])


def test_a_set_larger_than_the_pool_is_the_whole_pool():
    whole, more = (split_records(FilesConfig(num_examples=n), texts(100), None) for n in (None, 4000))
    assert more.by_name == whole.by_name


def test_an_eval_file_is_the_whole_test_set_and_its_examples_are_neither_trained_nor_validated_on():
    config = FilesConfig(eval_path="e", num_test_examples=3, validation_fraction=0.3)
    held_out = [*texts(60, first=50), *texts(1, first=99)]
    without = contents(split_records(config, texts(100), texts(1, first=1000)))
    assert without["train"] & {record.text for record in held_out}  # both splits held some of them
    assert without["validation"] & {record.text for record in held_out}
    splits = split_records(config, texts(100), held_out)
    found = contents(splits)
    assert found["train"] | found["validation"] == {f"text {n}" for n in range(50)}
    assert found["train"] <= without["train"]
    assert found["test"] == {f"text {n}" for n in range(50, 110)}
    assert splits.num_test_in_training == 50
    assert splits.dropped == {"train": {IN_TEST_FILE: 50}, "eval": {"duplicate": 1}}


def test_a_limit_counts_the_examples_that_are_not_in_the_eval_file():
    splits = split_records(FilesConfig(eval_path="e", num_examples=20), texts(100), texts(60))
    assert len(splits.by_name["train"]) == 20


def test_a_test_file_that_takes_all_examples_leaves_no_training_but_can_be_measured():
    config = FilesConfig(eval_path="e")
    splits = split_records(config, texts(10), texts(10))
    num_examples = {name: len(found) for name, found in splits.by_name.items()}
    assert num_examples == {"train": 0, "validation": 0, "test": 10}
    with pytest.raises(DataError, match=r"no training example is left \(.*\); give more examples$"):
        check_not_empty(num_examples, config)
    with pytest.raises(DataError, match="no test example"):
        check_not_empty({**num_examples, "test": 0}, config, training=False)


def test_three_examples_fill_three_splits():
    assert {name: len(found) for name, found in contents(split_records(FilesConfig(), texts(3), None)).items()} == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }


@pytest.mark.parametrize(
    ("config", "count", "message"),
    [
        (FilesConfig(), 2, r"no training example is left \(train 0, validation 1, test 1\)"),
        (FilesConfig(test_fraction=0.0), 10, r"no test example.*data\.test_fraction above 0 or data\.eval_path"),
    ],
)
def test_an_empty_split_is_refused_with_the_cure(config, count, message):
    with pytest.raises(DataError, match=message):
        split_records(config, texts(count), None)


def test_validation_may_be_empty_only_where_it_is_turned_off():
    splits = split_records(FilesConfig(validation_fraction=0.0), texts(20), None)
    assert splits.by_name["validation"] == []
    with pytest.raises(DataError, match=r"no validation example is left"):
        check_not_empty({"train": 2, "validation": 0, "test": 1}, FilesConfig(), "")


def test_the_hash_tells_forms_and_borders_apart():
    pairs = [("ab", "c"), ("a", "bc")]
    hashes = {content_hash(Record("f", 1, prompt=prompt, completion=completion)) for prompt, completion in pairs}
    hashes.add(content_hash(Record("f", 1, text="abc")))
    hashes.add(content_hash(Record("f", 1, messages=({"role": "user", "content": "abc"},))))
    assert len(hashes) == 4
    assert content_hash(Record("f", 1, text="abc")) == content_hash(Record("g", 2, text="abc\n", group="other"))
