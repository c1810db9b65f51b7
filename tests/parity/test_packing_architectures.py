"""On every architecture packed rows give each example its own numbers, or packing is refused."""

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from llmtune.data.collate import collate
from llmtune.models import chunked_loss
from llmtune.models.attention import VARLEN, attention_of, set_attention
from llmtune.models.packing import PackingNeeds, _candidates, choose_attention, packing_fault
from llmtune.models.precision import Precision
from llmtune.models.token_loss import WHOLE, choose_loss, set_loss, token_loss_sum
from tiny_shapes import CAPPED, EOS, SHAPE, VOCABULARY

pytestmark = pytest.mark.fast

FP32 = Precision("fp32", "cpu", "test")
LENGTHS = (11, 4, 30, 2, 25)
MAX_LENGTH = 32
LONG_SHAPE = {**SHAPE, "max_position_embeddings": 64}
HEADS = {"num_key_value_heads": 4, "n_head": 4, "n_embd": 32, "n_layer": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
PACKED = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "Gemma": {},
    "Gemma3Text": {**CAPPED, "sliding_window": MAX_LENGTH},
    "Mistral": {"sliding_window": MAX_LENGTH},
    "Phi3": {},
    "Granite": {"logits_scaling": 0.5},
    "Cohere": {"logit_scale": 2.0},
    "Olmo2": {},
    "SmolLM3": {},
    "Glm4": {},
    "Llama4Text": {"attention_chunk_size": MAX_LENGTH, "num_local_experts": 2, "intermediate_size_mlp": 32},
    "GPTNeoX": {},
    "GPT2": {**HEADS, "n_positions": 64},
    "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 32},
    "BioGpt": {},
}
SHORT = MAX_LENGTH - 1
REFUSED = {
    "Mistral": ({"sliding_window": SHORT}, f"sliding window ({SHORT} tokens) is shorter than data.max_seq_len=32"),
    "Gemma3Text": ({**CAPPED, "sliding_window": SHORT}, "sliding window"),
    "Llama4Text": ({**PACKED["Llama4Text"], "attention_chunk_size": SHORT}, f"attention chunk ({SHORT} tokens)"),
    "Gemma2": ({**CAPPED, "sliding_window": MAX_LENGTH}, "its attention has softcap"),
    "GPTNeo": (
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
        "doesn't take its attention from transformers' registry",
    ),
    "GPTJ": ({**HEADS, "rotary_dim": 8}, "doesn't take its attention from transformers' registry"),
    "Bloom": (HEADS, "doesn't take its attention from transformers' registry"),
    "StableLm": ({}, "losses differ"),
    "Nemotron": ({}, "losses differ"),
    "Mamba": ({"state_size": 8}, "losses differ"),
    "Lfm2": ({"layer_types": ["conv", "full_attention"]}, "losses differ"),
}
NEEDS = PackingNeeds("auto", True, MAX_LENGTH)


class Rows:
    """Examples of `LENGTHS`, from the third token on supervised; stands for a TokenTable."""

    def __init__(self):
        generator = np.random.default_rng(3)
        self._ids = [generator.integers(3, VOCABULARY, length).astype(np.int32) for length in LENGTHS]

    def input_ids(self, index):
        return self._ids[index]

    def labels(self, index):
        return np.where(np.arange(LENGTHS[index]) >= 2, self._ids[index], -100).astype(np.int32)


ROWS = Rows()


def make(name, extra):
    """A random model of a few thousand weights, in evaluation mode."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**LONG_SHAPE | extra)
    return AutoModelForCausalLM.from_config(config).eval()


def packed_batch():
    return collate(ROWS, range(len(LENGTHS)), packed=True, pad_token_id=EOS)


def alone(model, index):
    """The row of one example, and its labels, as transformers takes them."""
    ids, labels = (torch.from_numpy(read(index)).long()[None] for read in (ROWS.input_ids, ROWS.labels))
    return ids, labels


def packed_logits(model, *, borders=True):
    batch = packed_batch()
    ends = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    extra = {"cu_seq_lens_q": ends, "max_length_q": max(LENGTHS)} if borders else {}
    return model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **extra).logits[0]


@pytest.mark.parametrize("name", PACKED)
def test_packed_logits_equal_those_alone_under_each_attention_that_packs(name):
    model = make(name, PACKED[name])
    with torch.no_grad():
        expected = [model(input_ids=alone(model, index)[0], use_cache=False).logits[0] for index in range(len(LENGTHS))]
    expected = torch.cat(expected)
    largest = float(expected.abs().max())
    assert choose_attention(model, NEEDS, FP32).packed
    for attention in _candidates(torch.device("cpu"), FP32):
        assert packing_fault(model, attention, FP32) is None
        assert attention_of(model) == attention
        with torch.no_grad():
            assert float((packed_logits(model) - expected).abs().max()) <= 1e-5 * largest
            # control: without borders the examples after the first see those before them
            apart = (packed_logits(model, borders=False) - expected).abs()
        assert float(apart[: LENGTHS[0]].max()) <= 1e-5 * largest < 1e-2 * largest < float(apart[LENGTHS[0] :].max())


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_padded_and_keep_their_attention(name):
    extra, reason = REFUSED[name]
    model = make(name, extra)
    before = attention_of(model)
    choice = choose_attention(model, NEEDS, FP32)
    assert not choice.packed
    assert reason in choice.reason
    assert choice.name == attention_of(model) == before


def test_control_a_mask_that_a_packed_row_goes_without_would_leak():
    model = make("Llama4Text", PACKED["Llama4Text"] | {"attention_chunk_size": 8})
    with torch.no_grad():
        expected = model(input_ids=alone(model, 2)[0], use_cache=False).logits[0]
        set_attention(model, VARLEN)
        found = packed_logits(model)[sum(LENGTHS[:2]) : sum(LENGTHS[:3])]
    assert float((found - expected).abs().max()) > 1e-2 * float(expected.abs().max())


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def norm(found):
    return float(torch.nn.utils.get_total_norm(list(found.values())))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_loss_and_gradients_are_transformers_own_example_by_example(name, tied, monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    model, batch = make(name, PACKED[name] | {"tie_word_embeddings": tied}), packed_batch()
    total = 0.0
    for index, length in enumerate(LENGTHS):
        if length > 2:
            ids, labels = alone(model, index)
            total += model(input_ids=ids, labels=labels, use_cache=False).loss * (length - 2)
    theirs = total / batch.targets.numel()
    expected = gradients(model, theirs)
    for loss_name in {choose_loss(model).name, WHOLE}:
        set_attention(model, VARLEN)
        set_loss(model, loss_name)
        loss = token_loss_sum(model, **batch.inputs) / batch.targets.numel()
        found = gradients(model, loss)
        assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
        assert norm(found) == pytest.approx(norm(expected), rel=1e-6)
        apart = {parameter: found[parameter] - expected[parameter] for parameter in expected}
        assert norm(apart) <= 1e-5 * norm(expected)
