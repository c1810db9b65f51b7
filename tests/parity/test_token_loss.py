"""Our loss equals transformers' own, packed and padded, on several architectures."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, Qwen2Config, Qwen3Config

from llmtune.data.collate import supervised_tokens
from llmtune.models.attention import VARLEN, set_attention
from llmtune.models.packing import packing_fault
from llmtune.models.precision import Precision
from llmtune.models.token_loss import token_losses

FP32 = Precision("fp32", "cpu", "test")
SHAPE = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
CONFIGS = {
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, sliding_window=64, query_pre_attn_scalar=16),
}


@pytest.fixture(params=["tiny_llama", "tiny_gpt2", *CONFIGS])
def model(request, assets):
    """A small model in evaluation mode; attention dropout would make two passes differ."""
    if request.param in CONFIGS:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval()
    return AutoModelForCausalLM.from_pretrained(assets / request.param, dtype=torch.float32).eval()


@pytest.fixture
def examples():
    """Token ids and labels of examples; the first token of each is predicted by nothing."""
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 384, (length,), generator=generator) for length in (12, 5, 23)]
    labels = [example.clone() for example in ids]
    for label in labels:
        label[0] = -100
    labels[0][1:6] = -100
    labels[2][4:8] = -100
    return list(zip(ids, labels, strict=True))


def own_mean(model, example):
    """transformers' own mean loss of one example alone, and how many tokens it is over."""
    ids, labels = example
    loss = model(input_ids=ids[None], labels=labels[None], use_cache=False).loss
    return float(loss), int((labels[1:] != -100).sum())


def packed_losses(model, examples):
    ids = torch.cat([example[0] for example in examples])[None]
    labels = torch.cat([example[1] for example in examples])[None]
    lengths = [len(example[0]) for example in examples]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return token_losses(
        model,
        input_ids=ids,
        position_ids=positions,
        attention_mask=None,
        lengths=lengths,
        supervised=supervised_tokens(labels.numpy()),
    )


@pytest.mark.fast
@torch.no_grad()
def test_one_packed_example(model, examples):
    expected, count = own_mean(model, examples[2])
    set_attention(model, VARLEN)
    found = packed_losses(model, examples[2:])
    assert found.numel() == count
    assert float(found.mean()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.fast
@torch.no_grad()
def test_many_packed_examples(model, examples):
    alone = [own_mean(model, example) for example in examples]
    total = sum(mean * count for mean, count in alone)
    for name in (VARLEN, "sdpa"):  # sdpa keeps them apart by a mask that it builds out of the positions
        set_attention(model, name)
        found = packed_losses(model, examples)
        assert found.numel() == sum(count for _, count in alone)
        assert float(found.double().sum()) == pytest.approx(total, rel=1e-6)
    # control: without borders at restarting positions the loss is another
    set_attention(model, VARLEN)
    ids = torch.cat([example[0] for example in examples])[None]
    labels = torch.cat([example[1] for example in examples])[None]
    joined = token_losses(
        model,
        input_ids=ids,
        position_ids=torch.arange(40)[None],
        attention_mask=None,
        lengths=(40,),
        supervised=supervised_tokens(labels.numpy()),
    )
    assert float((joined - found).abs().max()) > 1e-2


@pytest.mark.fast
@torch.no_grad()
def test_padded_rows(model, examples):
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), longest), 2)
    labels = torch.full((len(examples), longest), -100)
    mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, (example, wanted) in enumerate(examples):
        ids[row, : len(example)] = example
        labels[row, : len(example)] = wanted
        mask[row, : len(example)] = True
    lengths = [len(example) for example, _ in examples]
    positions = torch.arange(longest).expand(len(examples), -1) * mask
    expected = model(input_ids=ids, attention_mask=mask, labels=labels, position_ids=positions, use_cache=False).loss
    alone = [own_mean(model, example) for example in examples]
    for name in ("sdpa", VARLEN):
        set_attention(model, name)
        found = token_losses(
            model,
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            lengths=lengths,
            supervised=supervised_tokens(labels.numpy()),
        )
        assert float(found.mean()) == pytest.approx(float(expected), rel=1e-6)
        start = 0
        for mean, count in alone:
            assert float(found[start : start + count].mean()) == pytest.approx(mean, rel=1e-6)
            start += count
        assert start == found.numel()


@pytest.mark.fast
def test_every_architecture_here_packs(model):
    assert packing_fault(model, VARLEN, FP32) is None


@pytest.mark.fast
def test_softcapped_attention_is_not_packed():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        Gemma2Config(**SHAPE, query_pre_attn_scalar=16), attn_implementation="eager"
    )
    fault = packing_fault(model, VARLEN, FP32)
    assert fault == "its attention has softcap"
    assert model.config._attn_implementation == "eager"
