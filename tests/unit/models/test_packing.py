"""Packed examples see only themselves; models for which that fails are padded."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, MistralConfig

from llmtune.models.attention import VARLEN, attention_of, plain_attention, set_attention
from llmtune.models.packing import PackingNeeds, choose_attention, packing_fault
from llmtune.models.precision import Precision

FP32 = Precision("fp32", "cpu", "test")
LENGTHS = (11, 4, 30)


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def logits(model, rows, *, borders):
    lengths = [len(row) for row in rows]
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    extra = {"cu_seq_lens_q": ends, "max_length_q": max(lengths)} if borders else {}
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return model(input_ids=torch.cat(rows)[None], position_ids=positions, use_cache=False, **extra).logits[0]


@pytest.mark.fast
@torch.no_grad()
def test_packed_logits_equal_those_alone(model):
    rows = [torch.randint(3, 384, (length,), generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
    alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
    set_attention(model, VARLEN)
    packed = logits(model, rows, borders=True)
    largest = float(alone.abs().max())
    assert float((packed - alone).abs().max()) <= 1e-5 * largest
    # control: without the borders the examples see each other
    leaking = logits(model, rows, borders=False)
    assert float((leaking - alone)[LENGTHS[0] :].abs().max()) > 1e-2 * largest


@pytest.mark.fast
def test_gradients_of_packed_rows_equal_those_alone(model):
    rows = [torch.randint(3, 384, (length,), generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
    for row in rows:
        model(input_ids=row[None], use_cache=False).logits.square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    set_attention(model, VARLEN)
    logits(model, rows, borders=True).square().sum().backward()
    for name, parameter in model.named_parameters():
        largest = float(expected[name].abs().max())
        assert float((parameter.grad - expected[name]).abs().max()) <= 1e-5 * largest + 1e-9, name


@pytest.mark.fast
def test_attention_dropout_reaches_packed_rows(tiny_gpt2):
    model = AutoModelForCausalLM.from_pretrained(
        tiny_gpt2, dtype=torch.float32, attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0
    ).train()
    set_attention(model, VARLEN)
    row = [torch.arange(3, 20)]
    with torch.no_grad():
        assert not torch.equal(logits(model, row, borders=True), logits(model, row, borders=True))
        model.eval()
        assert torch.equal(logits(model, row, borders=True), logits(model, row, borders=True))


@pytest.mark.fast
def test_generation_with_a_cache_is_the_same_under_both(model):
    prompt = torch.tensor([[2, 2, 40, 50, 60], [30, 31, 32, 33, 34]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 2, "attention_mask": mask}
    expected = model.generate(prompt, **how)
    set_attention(model, VARLEN)
    assert torch.equal(model.generate(prompt, **how), expected)
    with plain_attention(model):
        assert attention_of(model) == "sdpa"
        assert torch.equal(model.generate(prompt, **how), expected)
    assert attention_of(model) == VARLEN


@pytest.mark.fast
def test_choice_by_setting(model):
    packed = choose_attention(model, PackingNeeds("auto", True, 64), FP32)
    assert (packed.name, packed.packed) == (VARLEN, True) and attention_of(model) == VARLEN
    model.set_attn_implementation("sdpa")
    padded = choose_attention(model, PackingNeeds("auto", False, 64), FP32)
    assert (padded.name, padded.packed) == ("sdpa", False)
    eager = choose_attention(model, PackingNeeds("eager", True, 64), FP32)
    assert (eager.name, eager.packed) == ("eager", False) and attention_of(model) == "eager"
    assert "model.attention" in eager.reason


@pytest.mark.fast
def test_short_sliding_window_is_padded():
    config = MistralConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=48,
    )
    model = AutoModelForCausalLM.from_config(config)
    assert choose_attention(model, PackingNeeds("auto", True, 48), FP32).packed
    model.set_attn_implementation("sdpa")
    choice = choose_attention(model, PackingNeeds("auto", True, 64), FP32)
    assert not choice.packed and "sliding window (48 tokens)" in choice.reason
    # control: the layer itself refuses, should it ever see such an example
    set_attention(model, VARLEN)
    with pytest.raises(NotImplementedError, match="sliding window of 48"):
        logits(model, [torch.arange(64)], borders=True)


@pytest.mark.fast
def test_recurrent_model_is_padded():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=1, state_size=8)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert packing_fault(model, VARLEN, FP32) is not None


@pytest.mark.fast
def test_leaking_implementation_is_found(model, monkeypatch):
    """A packed forward that forgets the borders is caught by the numbers."""
    from llmtune.models import token_loss

    monkeypatch.setattr(token_loss, "_borders", lambda lengths, device: {})
    before = attention_of(model)
    fault = packing_fault(model, VARLEN, FP32)
    assert fault is not None and "differ" in fault
    assert attention_of(model) == before and not model.training
