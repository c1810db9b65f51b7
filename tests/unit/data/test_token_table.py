"""Digests of a table of tokens, against hashes taken by hand."""

import hashlib

import numpy as np
import pytest

from llmtune.data.encoding.example import TokenizedExample
from llmtune.data.token_table import TokenTable, TokenTableWriter, token_batch, write_order

pytestmark = pytest.mark.fast
HASHES = {name: hashlib.sha256(name.encode()).hexdigest() for name in "abc"}
ROWS = [("a", 0, [5, 6, 7], [-100, 6, 7]), ("b", 0, [8, 9], [-100, 9]), ("b", 1, [9, 4], [-100, 4]), ("c", 0, [3], [3])]
"""Row, part of it, ids and labels."""


def table(folder, rows, order, size=2):
    """A table stored in batches of `size` examples."""
    with TokenTableWriter(folder / "t.arrow") as writer:
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            names = {
                "example_id": [HASHES[name][:16] + (f"-{number}" if number else "") for name, number, _, _ in part],
                "content_hash": [HASHES[name] for name, _, _, _ in part],
                "source_path": ["f"] * len(part),
                "source_line": [1] * len(part),
            }
            tokens = [
                TokenizedExample(np.array(ids, np.int32), np.array(labels, np.int32), 1) for *_, ids, labels in part
            ]
            writer.write(token_batch(names, tokens))
    write_order(folder / "o.npy", np.array(order, np.int64))
    return TokenTable(folder / "t.arrow", folder / "o.npy")


def test_names_and_hashes_in_the_order_in_which_they_count(tmp_path):
    found = table(tmp_path, ROWS, [3, 1, 2, 0])
    assert found.example_ids() == [found.example_id(index) for index in range(4)]
    assert [name.decode() for name in found.content_hashes()] == [HASHES[name] for name in "cbba"]


def test_digests_are_those_taken_by_hand(tmp_path):
    found = table(tmp_path, ROWS, [3, 1, 2, 0])
    digest = hashlib.sha256(np.array([1, 2, 2, 3], "<i8").tobytes())
    digest.update(np.array([3, 8, 9, 9, 4, 5, 6, 7], "<i4").tobytes())
    digest.update(np.array([3, -100, 9, -100, 4, -100, 6, 7], "<i4").tobytes())
    assert found.tokens_digest() == digest.hexdigest()
    rows = "".join(HASHES[name] for name in "cba")  # a row's second window doesn't count
    assert found.content_digest() == hashlib.sha256(rows.encode()).hexdigest()


def test_what_changes_them_and_what_does_not(tmp_path):
    def digests(rows, order, size=2):
        found = table(tmp_path, rows, order, size)
        return found.tokens_digest(), found.content_digest()

    plain = digests(ROWS, [0, 1, 2, 3])
    assert digests(ROWS, [0, 1, 2, 3], size=4) == plain
    assert digests([ROWS[3], *ROWS[:3]], [1, 2, 3, 0]) == plain  # stored otherwise, in the same order
    tokens, content = digests(ROWS, [1, 2, 0, 3])
    assert tokens != plain[0] and content != plain[1]
    for ids, labels in (([5, 6, 8], [-100, 6, 8]), ([5, 6, 7], [-100, -100, 7])):  # a token, a label
        tokens, content = digests([("a", 0, ids, labels), *ROWS[1:]], [0, 1, 2, 3])
        assert tokens != plain[0] and content == plain[1]
    moved = [("a", 0, [5, 6], [-100, 6]), ("b", 0, [7, 8, 9], [7, -100, 9]), *ROWS[2:]]  # a border
    assert digests(moved, [0, 1, 2, 3])[0] != plain[0]
    assert digests(ROWS, [0, 1, 2])[1] != plain[1] and digests([*ROWS[:2], ROWS[3]], [0, 1, 2])[1] == plain[1]
