"""Weights in 16 bits that multiply in 32 give what the same weights in 32 bits give."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen3Config

from llmtune.models.float32_products import compute_in_float32
from tiny_shapes import CAPPED, SHAPE, VOCABULARY

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("config", [LlamaConfig(**SHAPE, tie_word_embeddings=True), Qwen3Config(**SHAPE)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_the_logits_are_the_same_bits(config, dtype):
    torch.manual_seed(0)
    narrow = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    wide = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    wide.load_state_dict(narrow.state_dict())
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    alone = narrow(ids).logits
    compute_in_float32(narrow)
    assert torch.equal(narrow(ids).logits, wide(ids).logits)
    assert {weight.dtype for weight in narrow.parameters()} == {dtype}
    assert (alone.float() - wide(ids).logits).abs().max() > 1e-4, "rounded products would differ"


def test_a_failure_inside_leaves_the_weights_narrow():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.bfloat16)
    compute_in_float32(model)
    with pytest.raises(IndexError), torch.inference_mode():
        model(torch.tensor([[10**6]]))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_constants_in_sixteen_bits_are_refused():
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SHAPE, **CAPPED), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="buffers in 16 bits"):
        compute_in_float32(model)
