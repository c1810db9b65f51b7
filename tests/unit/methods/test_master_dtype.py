"""Weights that train in bf16: all of them, nothing else, saved as they are, and exact in float32."""

import logging
import warnings
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmtune.config.method import FullConfig, LoraConfig, QloraConfig
from llmtune.methods.registry import make_method
from llmtune.models.load import LoadSettings
from llmtune.models.packing import PackingNeeds, choose_attention
from llmtune.models.precision import Precision
from llmtune.models.token_loss import CHUNKED, choose_loss
from llmtune.models.vocabulary import NewToken, Vocabulary

pytestmark = pytest.mark.fast

BF16, FP32 = torch.bfloat16, torch.float32
HOW = LoadSettings(BF16, torch.device("cpu"))
PRECISION = Precision("bf16", "cpu", "for the test")
CONFIGS = [FullConfig(), LoraConfig(dropout=0.0), QloraConfig(dropout=0.0)]
each_method = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
each_adapter = pytest.mark.parametrize("config", CONFIGS[1:], ids=lambda config: config.name)


@pytest.fixture
def grown(source):
    """Each tiny model with two tokens that it lacks."""
    return replace(source, vocabulary=Vocabulary((NewToken("<|a|>", 384), NewToken("<|b|>", 385))))


def build(config, source, master_dtype=BF16):
    method = make_method(config, master_dtype=master_dtype)
    return method, method.make_trainable(method.load(source, HOW), 1, source.vocabulary.new_ids)


def weights(model, *, trainable=True):
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad == trainable}


def train(model, mean_loss, steps=2):
    optimizer = torch.optim.AdamW(weights(model).values(), lr=1e-2, fused=True)
    model.train()
    for _ in range(steps):
        with PRECISION.autocast():
            loss = mean_loss(model)
        loss.backward()
        optimizer.step()
        kinds = {
            tensor.dtype for state in optimizer.state.values() for tensor in (state["exp_avg"], state["exp_avg_sq"])
        }
        kinds |= {parameter.grad.dtype for parameter in weights(model).values() if parameter.grad is not None}
        optimizer.zero_grad()
    model.eval()
    return kinds


@each_method
def test_all_that_trains_is_bf16_with_its_gradients_and_the_state(config, grown, mean_loss):
    _, model = build(config, grown)
    _, usual = build(config, grown, FP32)
    trained, frozen = weights(model), weights(model, trainable=False)
    assert {tensor.dtype for tensor in trained.values()} == {BF16}
    assert any("trainable_tokens_delta" in name for name in trained) == (config.name != "full")
    assert {name: tensor.dtype for name, tensor in frozen.items()} == {
        name: tensor.dtype for name, tensor in weights(usual, trainable=False).items()
    }
    for name, tensor in trained.items():  # but rows of new tokens, which are a mean of others
        assert torch.equal(tensor[:384], weights(usual)[name].to(BF16)[:384]), name
    assert {tensor.dtype for tensor in weights(usual).values()} == {FP32}  # control
    before = {name: tensor.detach().clone() for name, tensor in [*trained.items(), *frozen.items()]}
    assert train(model, mean_loss) == {BF16}
    assert all(torch.equal(before[name], model.get_parameter(name)) for name in frozen)
    assert any(not torch.equal(before[name], model.get_parameter(name)) for name in trained)


@each_method
def test_what_is_saved_comes_back_in_bf16_and_exactly_in_float32(config, source, mean_loss, tmp_path):
    method, model = build(config, source)
    train(model, mean_loss)
    method.save(model, tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {BF16}

    _, fresh = build(config, source)
    assert any(not torch.equal(tensor, weights(fresh)[name]) for name, tensor in weights(model).items())
    method.restore(fresh, tmp_path / "saved")
    for name, tensor in weights(model).items():
        assert weights(fresh)[name].dtype == BF16 and torch.equal(tensor, weights(fresh)[name])
    loaded = method.load_trained(source, tmp_path / "saved", HOW)
    assert not loaded.training and weights(loaded) == {}
    for name, tensor in weights(model).items():
        assert loaded.get_parameter(name).dtype == FP32 and torch.equal(tensor.float(), loaded.get_parameter(name))
    with torch.no_grad(), PRECISION.autocast():
        assert float(mean_loss(loaded)) == pytest.approx(float(mean_loss(model)), rel=1e-2)


def test_plain_transformers_loads_it_in_bf16(source, mean_loss, tmp_path):
    method, model = build(FullConfig(), source)
    train(model, mean_loss)
    method.save(model, tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert plain.dtype == BF16 and plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in plain.named_parameters())


def test_plain_peft_loads_it_without_a_word(source, mean_loss, tmp_path, caplog):
    method, model = build(LoraConfig(dropout=0.0), source)
    train(model, mean_loss)
    method.save(model, tmp_path / "saved")
    base = AutoModelForCausalLM.from_pretrained(source.folder, dtype=FP32)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT's own use
        plain = peft.PeftModel.from_pretrained(base, str(tmp_path / "saved"))
    assert caplog.records == []
    adapters = {name: tensor for name, tensor in plain.named_parameters() if "lora_" in name}
    assert all(torch.equal(tensor.to(FP32), weights(model)[name].float()) for name, tensor in adapters.items())


@each_adapter
def test_an_adapter_goes_over_between_the_types(config, source, mean_loss, tmp_path):
    for saved, taken in ((BF16, FP32), (FP32, BF16)):
        method, model = build(config, source, saved)
        train(model, mean_loss)
        method.save(model, tmp_path / str(saved))
        other, fresh = build(config, source, taken)
        other.restore(fresh, tmp_path / str(saved))
        assert {tensor.dtype for tensor in weights(fresh).values()} == {taken}
        assert all(torch.equal(tensor.to(taken), weights(fresh)[name]) for name, tensor in weights(model).items())


@each_method
def test_the_fast_paths_hold_on_it(config, source):
    _, model = build(config, source)
    with PRECISION.autocast():
        assert choose_loss(model).name == CHUNKED
    assert choose_attention(model, PackingNeeds("auto", True, 64), PRECISION).packed
