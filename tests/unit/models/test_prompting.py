from types import SimpleNamespace

import pytest
import torch

from llmtune.models.prompting import left_padded, pad_token_id, stop_token_ids

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("own", "tokenizer_end", "expected"),
    [(None, 2, [2]), (2, 2, [2]), ([7, 2, 9], 2, [2, 7, 9]), (5, 2, [2, 5]), (0, None, [0])],
)
def test_a_text_ends_at_the_tokenizers_and_the_models_end_tokens(own, tokenizer_end, expected):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own))
    assert stop_token_ids(model.generation_config, SimpleNamespace(eos_token_id=tokenizer_end)) == expected


def test_a_model_without_generation_settings_ends_at_the_tokenizers_token():
    assert stop_token_ids(None, SimpleNamespace(eos_token_id=2)) == [2]


def test_padding_is_the_pad_token_even_where_its_id_is_0():
    assert pad_token_id(SimpleNamespace(pad_token_id=0, eos_token_id=2)) == 0
    assert pad_token_id(SimpleNamespace(pad_token_id=None, eos_token_id=2)) == 2


def test_rows_end_at_the_right_edge():
    ids, mask = left_padded([[5, 6, 7], [8]], 2, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [2, 2, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
