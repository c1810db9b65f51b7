"""Tensors of a micro-batch, worked out by hand."""

import numpy as np
import pytest
import torch

from llmtune.data.collate import collate, supervised_tokens
from llmtune.data.encoding.example import TokenizedExample
from llmtune.data.token_table import TokenTable, TokenTableWriter, token_batch

pytestmark = pytest.mark.fast
PAD = 2


@pytest.fixture
def table(tmp_path):
    rows = [([5, 6, PAD], [5, 6, PAD]), ([7, 8, 9, PAD], [-100, -100, 9, PAD])]
    tokenized = [TokenizedExample(np.array(i, np.int32), np.array(n, np.int32), 3) for i, n in rows]
    names = {name: ["a", "b"] for name in ("example_id", "content_hash", "source_path")} | {"source_line": [1, 2]}
    with TokenTableWriter(tmp_path / "a.arrow") as writer:
        writer.write(token_batch(names, tokenized))
    return TokenTable(tmp_path / "a.arrow")


def test_packed_examples_stand_end_to_end_and_none_predicts_the_next(table):
    batch = collate(table, (1, 0), packed=True, pad_token_id=PAD)
    assert batch.input_ids.tolist() == [[7, 8, 9, 2, 5, 6, 2]]
    assert (batch.predicted.tolist(), batch.targets.tolist()) == ([2, 3, 5, 6], [9, 2, 6, 2])
    assert batch.rows.tolist() == [1, 1, 0, 0]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.attention_mask is None
    assert (batch.lengths, batch.indices) == ((4, 3), (1, 0))


def test_padding_is_told_by_position_and_never_by_token(table):
    batch = collate(table, (0, 1), packed=False, pad_token_id=PAD)
    assert batch.input_ids.tolist() == [[5, 6, 2, 2], [7, 8, 9, 2]]
    assert (batch.predicted.tolist(), batch.targets.tolist()) == ([1, 2, 6, 7], [6, 2, 9, 2])
    assert batch.rows.tolist() == [0, 0, 1, 1]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[True, True, True, False], [True, True, True, True]]
    assert (batch.lengths, batch.indices) == ((3, 4), (0, 1))


@pytest.mark.parametrize("packed", [True, False])
def test_as_many_labels_as_the_table_counts(table, packed):
    batch = collate(table, (0, 1), packed=packed, pad_token_id=PAD)
    assert len(batch.predicted) == len(batch.targets) == int(table.num_supervised_tokens.sum()) == 4
    moved = batch.to("meta")
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert (moved.lengths, moved.indices) == (batch.lengths, batch.indices)
    assert str(batch.input_ids.dtype) == "torch.int64"


def test_an_example_of_one_token_is_learnt_nowhere(table):
    labels = torch.tensor([[-100, 6, -100, -100], [-100, -100, 8, -100]])
    assert [found.tolist() for found in supervised_tokens(labels.numpy())] == [[1, 6], [6, 8]]
    assert [found.shape for found in supervised_tokens(np.full((2, 3), -100))] == [(0,), (0,)]
