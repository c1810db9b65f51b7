"""New tokens' rows: where they fit, what they start from, and that nothing else moves."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from llmtune.errors import ModelError
from llmtune.models.vocabulary import NewToken, Vocabulary, adapt_model

TWO = Vocabulary((NewToken("<|a|>", 384), NewToken("<|b|>", 385)))


def llama(*, tied=True, rows=384):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, **shape)).eval()


def matrices(model):
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


@pytest.mark.fast
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [384, 385, 400])
def test_new_rows_are_the_mean_and_the_others_stay(tied, rows):
    model = llama(tied=tied, rows=rows)
    before = [matrix.clone() for matrix in matrices(model)]
    torch.manual_seed(7)
    expected_next = torch.rand(1)
    torch.manual_seed(7)
    adapt_model(model, TWO)
    assert torch.equal(torch.rand(1), expected_next)  # no random state moved
    after = matrices(model)
    assert (after[0].data_ptr() == after[1].data_ptr()) == tied
    assert model.config.vocab_size == max(rows, 386)
    for old, new in zip(before, after, strict=True):
        assert new.shape == (max(rows, 386), 32)
        assert torch.equal(new[:384], old[:384]) and torch.equal(new[386:], old[386:])
        assert torch.allclose(new[384:386], old[:384].mean(0).expand(2, -1), atol=1e-7)
        assert torch.equal(new[384], new[385])
    assert model(torch.tensor([[385, 3]])).logits.shape[-1] == max(rows, 386)
    again = llama(tied=tied, rows=rows)
    adapt_model(again, TWO)
    assert all(torch.equal(one, two) for one, two in zip(after, matrices(again), strict=True))


@pytest.mark.fast
def test_trained_rows_stay():
    model = llama(rows=386)
    with torch.no_grad():
        model.get_input_embeddings().weight[384:] = 3.0
    adapt_model(model, TWO, has_rows=True)
    assert torch.equal(matrices(model)[0][384:], torch.full((2, 32), 3.0))
    adapt_model(model, TWO)  # control
    assert not torch.equal(matrices(model)[0][384:], torch.full((2, 32), 3.0))


@pytest.mark.fast
def test_the_end_token_comes_first():
    model = llama()
    model.generation_config.eos_token_id = [2, 9]
    adapt_model(model, Vocabulary(TWO.new_tokens, end_token_id=385))
    assert model.generation_config.eos_token_id == [385, 2, 9] and model.config.eos_token_id == 385
    adapt_model(model, Vocabulary(TWO.new_tokens, end_token_id=385), has_rows=True)
    assert model.generation_config.eos_token_id == [385, 2, 9]
    plain = llama()
    plain.generation_config.eos_token_id = None
    adapt_model(plain, Vocabulary(end_token_id=2))
    assert plain.generation_config.eos_token_id == 2


@pytest.mark.fast
def test_another_models_tokenizer_is_refused():
    with pytest.raises(ModelError, match=r"the tokenizer has 384 tokens and the model 300 rows of embeddings"):
        adapt_model(llama(rows=300), TWO)
