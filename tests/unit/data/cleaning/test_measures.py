"""What is measured of records, and which of them stand out."""

import inspect
import json
import textwrap

import numpy as np
import pytest

from llmtune.data.cleaning import measures, outliers
from llmtune.data.cleaning.measures import measure, odd_share, repetition
from llmtune.data.cleaning.outliers import (
    MOST_ODD_SHARE,
    MOST_REPETITION,
    Measured,
    describe_loss,
    describe_outlier,
    find_loss_outliers,
    find_outliers,
)
from llmtune.data.deciding import splits
from llmtune.data.records import Record

pytestmark = pytest.mark.fast


def test_a_row_a_record_over_all_its_parts():
    found = measure([Record("f", 1, prompt="one two", completion="three"), Record("f", 2, text="")])
    assert found.num_words.tolist() == [3, 0]
    assert (found.num_words.dtype, found.repetition.dtype, found.odd_share.dtype) == (np.int32, np.float32, np.float32)
    assert found.repetition.tolist() == [0, 0]
    assert found.odd_share.tolist() == [0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "a" * 300,
        "spam " * 60,
        "Please buy our product now. " * 20,
        "I said it once and I say it again, " * 40,
        "é" * 500,
    ],
)
def test_what_repeats_itself_is_above_the_bound(text):
    assert repetition(text) > MOST_REPETITION


@pytest.mark.parametrize(
    "text",
    [
        "A short sentence.",
        "no no no",
        *(inspect.getsource(module) for module in (splits, measures, outliers, np.linalg.norm, textwrap)),
        json.dumps([{"name": f"name {n}", "value": n * n} for n in range(60)], indent=2),
    ],
)
def test_ordinary_text_code_and_data_are_below_it(text):
    assert 0 <= repetition(text) < MOST_REPETITION


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("plain\ttext\r\n", 0),
        ("a\x00b\x07", 0.5),
        ("\ufffd\ufffdab", 0.5),
        ("\ue000abc", 0.25),
        ("\U000f0000abc", 0.25),
        ("\u0378abc", 0.25),
        ("cafÃ©", 2 / 5),
        ("itâ€™s", 3 / 6),
        ("ok\x7f\x1b", 0.5),
        ("a\ud800", 0.5),
        ("São Paulo, “NÃO” – âge, café, Ærø 日本語 😀", 0),
        ("", 0),
    ],
)
def test_characters_that_no_one_types_are_counted(text, share):
    assert odd_share(text) == pytest.approx(share)


def columns(words, repetitions=0.0, odd=0.0):
    size = len(words)
    return Measured(np.array(words), np.full(size, float(repetitions)), np.full(size, float(odd)))


def test_lengths_far_from_the_median_are_outliers():
    rng = np.random.default_rng(0)
    words = [*np.exp(rng.normal(4, 0.5, 2000)).astype(int), 12345, 1]
    flags = find_outliers(columns(words))["length"]
    assert flags[-2:].all()
    assert flags[:-2].sum() <= 2
    assert not find_outliers(columns([*range(20, 60), 10**6]))["length"].any()  # 41 rows: too few to tell
    assert find_outliers(columns([*range(20, 70), 10**6]))["length"].tolist() == [False] * 50 + [True]


def test_rows_of_one_length_do_not_make_a_slightly_longer_one_an_outlier():
    assert not find_outliers(columns([100] * 99 + [120]))["length"].any()
    assert find_outliers(columns([100] * 99 + [300]))["length"][-1]


def test_the_other_kinds_have_fixed_bounds():
    found = find_outliers(Measured(np.array([9, 9]), np.array([0.9, 0.91]), np.array([0.021, 0.02])))
    assert found["repetition"].tolist() == [False, True]
    assert found["characters"].tolist() == [True, False]
    assert MOST_ODD_SHARE == 0.02


def test_losses_far_from_the_median_and_those_that_are_none():
    rng = np.random.default_rng(0)
    losses = np.array([*rng.normal(2, 0.3, 500), 9.0, 0.001, np.nan, np.inf])
    flags = find_loss_outliers(losses)
    assert flags[-4:].all()
    assert flags[:-4].sum() <= 1
    assert find_loss_outliers(np.array([1.0, np.nan])).tolist() == [False, True]
    assert not find_loss_outliers(np.full(60, 2.0)).any()


def test_why_a_row_is_one_is_said_without_its_text():
    found = Measured(np.array([12345, 1]), np.array([0.951, 0]), np.array([0.0312, 0]))
    assert describe_outlier("length", found, 0, 80.0) == "12,345 words, the median is 80"
    assert describe_outlier("length", found, 1, 80.0) == "1 word, the median is 80"
    assert describe_outlier("repetition", found, 0, 80.0) == "95% of it repeats what stands before"
    assert describe_outlier("characters", found, 0, 80.0) == "3.1% of its characters are ones that no one types"
    assert describe_loss(np.array([9.0]), 0, 2.125) == "loss 9.00 nats a token, the median is 2.12"
