"""Columns over groups, worked out by hand."""

import numpy as np
import pytest

from llmtune.data.cleaning.groups import any_of, best_of, find, first_equal, join, lowest_of

pytestmark = pytest.mark.fast

GROUPS = np.array([0, 1, 0, 1, 4])


def test_the_first_equal_row_in_all_columns():
    one, two = np.array([5, 3, 5, 5, 3]), np.array([1, 2, 1, 2, 2])
    assert first_equal(one).tolist() == [0, 1, 0, 0, 1]
    assert first_equal(one, two).tolist() == [0, 1, 0, 3, 1]
    assert first_equal(np.zeros(0)).tolist() == []


def test_any_and_the_lowest():
    assert any_of(GROUPS, np.array([0, 0, 1, 0, 0], bool)).tolist() == [True, False, True, False, False]
    assert lowest_of(GROUPS, np.array([0.5, 0.2, 0.1, 0.9, 0.7])).tolist() == [0.1, 0.2, 0.1, 0.2, 0.7]


def test_the_best_is_of_lowest_rank_and_then_the_first_among_those_that_count():
    among = np.array([1, 1, 1, 1, 0], bool)
    assert best_of(GROUPS, among, np.array([1, 0, 0, 0, 0])).tolist() == [False, True, True, False, False]


def test_a_long_chain_is_joined_in_few_rounds():
    roots = np.arange(100_000)
    join(roots, np.arange(99_999), np.arange(1, 100_000))
    assert (find(roots, np.arange(100_000)) == 0).all()
    roots = np.arange(6)
    join(roots, np.array([5, 4, 1]), np.array([4, 3, 2]))
    assert find(roots, np.arange(6)).tolist() == [0, 1, 1, 3, 3, 3]
