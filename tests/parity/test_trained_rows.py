"""Rows of added tokens: our loss and layer give transformers' and PEFT's numbers, and gradients reach the rows."""

import peft
import pytest
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from llmtune.models.token_loss import CHUNKED, WHOLE, choose_loss, set_loss, token_loss_sum
from llmtune.models.token_rows import TokenRows, use_token_rows

pytestmark = pytest.mark.fast
IDS = [380, 383]
SHAPE = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.1,
}
KINDS = {
    "tied": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "untied": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "scaled, capped": lambda: Gemma3TextConfig(
        **SHAPE, sliding_window=64, query_pre_attn_scalar=16, final_logit_softcapping=5.0
    ),
}


@pytest.fixture(params=list(KINDS))
def model(request):
    """PEFT's own model, rows moved away from where they began, so that using the frozen ones shows."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(KINDS[request.param]())
    names = ["model.embed_tokens"] if base.config.tie_word_embeddings else ["model.embed_tokens", "lm_head"]
    lora = peft.LoraConfig(
        r=4, target_modules="all-linear", task_type="CAUSAL_LM", trainable_token_indices=dict.fromkeys(names, IDS)
    )
    model = peft.get_peft_model(base, lora).eval()
    with torch.no_grad():
        for rows in rows_of(model):
            rows.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(5)))
    return model


def rows_of(model):
    return [parameter for name, parameter in model.named_parameters() if "trainable_tokens_delta" in name]


def example():
    ids = torch.randint(3, 384, (1, 40), generator=torch.Generator().manual_seed(1))
    ids[0, ::5], ids[0, 7] = IDS[0], IDS[1]
    return ids


def of_transformers(model):
    """The model's own mean loss, and its gradients by parameter."""
    loss = model(input_ids=example(), labels=example(), use_cache=False).loss
    return float(loss), gradients(model, loss)


def mean_loss(model):
    ids, positions = example(), torch.arange(40)
    total = token_loss_sum(
        model,
        input_ids=ids,
        position_ids=positions[None],
        attention_mask=None,
        lengths=(40,),
        supervised=(positions[1:], ids[0, 1:]),
    )
    return total / 39


def of_ours(model):
    loss = mean_loss(model)
    return float(loss), gradients(model, loss)


def gradients(model, loss):
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(trainable.values()))
    return dict(zip(trainable, found, strict=True))


def check_same(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm()) <= tolerance * max(float(gradient.norm()), 1e-3), name


@pytest.mark.parametrize("fast", [False, True], ids=["PEFT's layer", "our layer"])
@pytest.mark.parametrize("way", [CHUNKED, WHOLE])
def test_loss_and_gradients_are_transformers(model, fast, way, monkeypatch):
    monkeypatch.setattr("llmtune.models.chunked_loss.CHUNK_ELEMENTS", 384 * 7)  # several chunks
    expected, theirs = of_transformers(model)
    if fast:
        use_token_rows(model)
    set_loss(model, way)
    found, ours = of_ours(model)
    assert found == pytest.approx(expected, rel=1e-6)
    check_same(ours, theirs)
    assert all(float(ours[name].norm()) > 1e-4 for name in ours if "trainable_tokens_delta" in name)
    # control: with the frozen rows the loss is another
    with torch.no_grad():
        for rows in rows_of(model):
            rows.zero_()
    assert of_ours(model)[0] != pytest.approx(expected, rel=1e-3)


def test_the_chunked_loss_is_chosen(model):
    use_token_rows(model)
    assert choose_loss(model).name == CHUNKED


def test_the_layer_gives_pefts_numbers_without_its_copy(model):
    theirs = model(example(), use_cache=False).logits
    use_token_rows(model)
    layers = [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]
    assert layers and all(type(layer) is TokenRows for layer in layers)
    copies = []
    for layer in layers:
        layer.get_merged_weights = copies.append  # what makes the copy
    assert torch.allclose(model(example(), use_cache=False).logits, theirs, rtol=1e-5, atol=1e-5)
    assert copies == []


@torch.no_grad()
def test_switched_off_the_frozen_rows_count(model):
    use_token_rows(model)
    set_loss(model, CHUNKED)
    with model.disable_adapter():
        off = float(model(input_ids=example(), labels=example(), use_cache=False).loss)
        assert float(mean_loss(model)) == pytest.approx(off, rel=1e-6)
    assert float(mean_loss(model)) != pytest.approx(off, rel=1e-3)
