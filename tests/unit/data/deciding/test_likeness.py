"""What rows belong to, for rows that can't be taken as independent."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmtune.data.deciding.likeness import clusters_of

pytestmark = pytest.mark.fast


def test_a_group_counts_before_near_duplicates_and_they_take_the_group_of_their_first():
    # rows:                0  1  2  3  4  5  6
    group = np.array([0, 7, 0, 7, 9, 0, 0], np.uint64)
    near = np.array([0, 1, 0, 3, 4, 4, 6])  # 2 is like 0, 5 is like 4
    columns: Any = SimpleNamespace(group=group)
    clusters = clusters_of(columns, near)
    together = {tuple(np.flatnonzero(clusters == name).tolist()) for name in np.unique(clusters)}
    assert together == {(0, 2), (1, 3), (4, 5), (6,)}
