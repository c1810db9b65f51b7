"""How a micro-batch is cut, and which step is cut how."""

import numpy as np
import pytest

from llmtune.training.splits import Split, Splits, cut, positions

pytestmark = pytest.mark.fast

LENGTHS = np.array([40, 10, 30, 20, 5])
ALL = (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (1, (ALL,)),
        (2, ((0, 1, 4), (2, 3))),
        (3, ((0,), (2, 4), (1, 3))),
        (5, ((0,), (2,), (3,), (1,), (4,))),
        (64, ((0,), (2,), (3,), (1,), (4,))),
    ],
)
def test_packed_pieces_have_about_equally_many_tokens(pieces, expected):
    assert cut(ALL, LENGTHS, pieces, packed=True) == expected


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [(1, (ALL,)), (2, ((0, 2, 3), (1, 4))), (3, ((0, 2), (3, 1), (4,))), (64, ((0,), (2,), (3,), (1,), (4,)))],
)
def test_padded_pieces_hold_examples_of_similar_length(pieces, expected):
    assert cut(ALL, LENGTHS, pieces, packed=False) == expected


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 8, 100])
def test_each_example_is_in_one_piece_and_the_largest_piece_shrinks(pieces, packed):
    lengths = np.random.default_rng(3).integers(1, 50, 37)
    whole = tuple(range(37))
    found = cut(whole, lengths, pieces, packed=packed)
    assert sorted(index for piece in found for index in piece) == list(whole)
    assert len(found) <= pieces and all(found)
    largest = max(positions(piece, lengths, packed=packed) for piece in found)
    share = positions(whole, lengths, packed=packed) / pieces
    assert largest <= share + lengths.max()


def test_positions_count_padding():
    assert positions((0, 1), LENGTHS, packed=True) == 50
    assert positions((0, 1), LENGTHS, packed=False) == 80


def test_a_step_is_cut_as_it_was_when_it_was_made_and_later_ones_no_coarser():
    splits = Splits()
    assert [splits.pieces(number) for number in (1, 9)] == [1, 1]
    splits.add(Split(5, 2))
    splits.add(Split(3, 4))
    assert [splits.pieces(number) for number in (1, 2, 3, 4, 5, 6)] == [1, 1, 4, 4, 4, 4]
    assert splits.all == (Split(1, 1), Split(5, 2), Split(3, 4))


def test_a_split_is_kept_before_it_is_used():
    def keep(splits):
        kept.append(list(splits))
        raise OSError

    kept, splits = [], Splits(keep=keep)
    with pytest.raises(OSError):
        splits.add(Split(2, 2))
    assert kept == [[Split(1, 1), Split(2, 2)]]
    assert splits.pieces(2) == 1
