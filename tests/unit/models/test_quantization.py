"""4-bit settings and the share of weights that they reach."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmtune.config.method import QloraConfig
from llmtune.errors import ConfigError
from llmtune.models.quantization import check_quantised, keep_as_quantised, nf4_config, quantised_share


@pytest.mark.fast
def test_settings():
    settings = nf4_config(QloraConfig(quant_type="fp4", double_quant=False), torch.bfloat16)
    assert settings.load_in_4bit and settings.bnb_4bit_quant_type == "fp4"
    assert not settings.bnb_4bit_use_double_quant and settings.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.fast
def test_share_of_quantised_weights(tiny_llama):
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert quantised_share(plain) == 0
    with pytest.raises(ConfigError, match=r"only 0% of tiny's weights.*use method=lora"):
        check_quantised(plain, "tiny")
    settings = nf4_config(QloraConfig(), torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, quantization_config=settings)
    # two layers of 64 × (64 + 32 + 32 + 64) attention and 3 × 64 × 64 MLP weights; five norms of 64 stay as they are
    linear, norms = 2 * (64 * 192 + 3 * 64 * 64), 5 * 64
    assert quantised_share(model) == pytest.approx(linear / (linear + norms))
    check_quantised(model, "tiny")


def quantised_base(folder, dtype, compute_dtype):
    settings = nf4_config(QloraConfig(), compute_dtype)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=settings)


def inference_pass(model):
    model.eval()
    with torch.no_grad():
        return model(torch.arange(3, 40)[None], use_cache=False).logits


def training_pass(model):
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model(torch.arange(3, 40)[None], use_cache=False).logits.detach()


@pytest.mark.fast
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_inference_leaves_the_base_as_it_was(tiny_model, compute_dtype):
    model = quantised_base(tiny_model, torch.float32, compute_dtype)
    keep_as_quantised(model, compute_dtype)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    first = training_pass(model)
    assert torch.equal(inference_pass(model), first)
    assert torch.equal(training_pass(model), first)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == before[name].dtype and torch.equal(parameter, before[name]), name


@pytest.mark.fast
@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this CPU's kernels don't repack weights")
def test_control_bitsandbytes_alone_changes_the_base(tiny_llama):
    model = quantised_base(tiny_llama, torch.float32, torch.float32)
    first = training_pass(model)
    inference_pass(model)
    assert float((training_pass(model) - first).abs().max()) > 1e-3 * float(first.abs().max())
