"""Added tokens under each method: their rows train, nothing else of the base does, and what is saved comes back."""

import warnings
from dataclasses import replace

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from llmtune.config.method import FullConfig, LoraConfig, QloraConfig
from llmtune.config.model import ModelConfig
from llmtune.errors import ConfigError
from llmtune.evaluation.generation import GenerationSettings, generate_texts
from llmtune.methods.registry import make_method
from llmtune.models.load import LoadSettings
from llmtune.models.precision import Precision
from llmtune.models.quantization import keep_as_quantised
from llmtune.models.source import locate_model
from llmtune.models.token_loss import token_loss_sum, token_losses
from llmtune.models.tokenizer import Adaptation, load_vocabulary

pytestmark = pytest.mark.fast
CPU = torch.device("cpu")
HOW = LoadSettings(torch.float32, CPU)
A, B = 384, 385
CONFIGS = {"lora": LoraConfig(dropout=0.0), "qlora": QloraConfig(dropout=0.0), "full": FullConfig()}
ROW = torch.tensor([[5, A, 70, 80, B, 90, A, 12, B, 33]])


def locate(folder, tmp_path, tokens=("<|a|>", "<|b|>")):
    """A model's source with its vocabulary changed, and the tokenizer."""
    source = locate_model(ModelConfig(name="tiny", source="folder", path=str(folder)), tmp_path)
    tokenizer, vocabulary = load_vocabulary(source, Adaptation(add_tokens=tokens, end_token=tokens[-1]))
    return replace(source, vocabulary=vocabulary), tokenizer


@pytest.fixture(params=["tiny_llama", "tiny_gpt2", "untied", "spare rows", "bfloat16"])
def adapted(request, assets, tmp_path):
    """Models with a tied and an untied head, with too few rows and with spare ones."""
    if request.param.startswith("tiny"):
        return locate(assets / request.param, tmp_path)
    return locate(make_llama(tmp_path / "model", assets, request.param), tmp_path)


def make_llama(folder, assets, kind):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    rows, tied = (400 if kind == "spare rows" else 384), kind == "bfloat16"
    config = LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, initializer_range=0.1, **shape)
    model = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16 if kind == "bfloat16" else torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(assets / "tiny_gpt2").save_pretrained(folder)
    return folder


@pytest.fixture(params=list(CONFIGS))
def config(request):
    return CONFIGS[request.param]


def build(config, adapted, tokenizer=None, how=HOW):
    source, _ = adapted
    method = make_method(config, tokenizer)
    return method, method.make_trainable(method.load(source, how), 1, source.vocabulary.new_ids)


POSITIONS = torch.arange(ROW.shape[1])
INPUTS = {
    "input_ids": ROW,
    "position_ids": POSITIONS[None],
    "attention_mask": None,
    "lengths": (ROW.shape[1],),
    "supervised": (POSITIONS[1:], ROW[0, 1:]),
}


def losses(model):
    return token_losses(model, **INPUTS)


def train(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.train()
    found = []
    for _ in range(steps):
        loss = token_loss_sum(model, **INPUTS) / len(POSITIONS[1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss))
    model.eval()
    return found


def parameters(model, *, trainable):
    chosen = ((name, p) for name, p in model.named_parameters() if p.requires_grad == trainable)
    return {name: p.detach().clone() for name, p in chosen}


def test_the_new_rows_train_and_nothing_else_of_the_base(config, adapted):
    _, model = build(config, adapted)
    frozen, trained = parameters(model, trainable=False), parameters(model, trainable=True)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    tied = inner.config.tie_word_embeddings
    rows = [name for name in trained if "trainable_tokens_delta" in name]
    assert len(rows) == (0 if config.name == "full" else 1 if tied else 2)
    assert all(trained[name].dtype == torch.float32 and trained[name].shape == (2, 64) for name in rows)
    if config.name != "full":
        assert all("lora_" in name for name in set(trained) - set(rows))
        assert all(torch.equal(trained[name][0], trained[name][1]) for name in rows)
    found = train(model)
    assert found[-1] < found[0]
    after = parameters(model, trainable=True)
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in frozen.items())
    assert all(not torch.equal(tensor, after[name]) for name, tensor in trained.items())
    if config.name == "full":
        weight = inner.get_input_embeddings().weight
        assert not torch.equal(weight[A], weight[B])
    assert all(not torch.equal(after[name][0], after[name][1]) for name in rows)


def test_what_is_saved_comes_back_bit_for_bit(config, adapted, tmp_path):
    source, tokenizer = adapted
    method, model = build(config, adapted, tokenizer)
    train(model)
    method.save(model, tmp_path / "saved")
    _, fresh = build(config, adapted)
    assert not torch.equal(losses(fresh), losses(model))
    method.restore(fresh, tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    loaded = method.load_trained(source, tmp_path / "saved", HOW)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        assert torch.equal(losses(loaded), losses(model))
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.eos_token_id == B and saved("<|a|>").input_ids[-1] == A


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_plain_peft_loads_it_without_a_warning(name, adapted, tmp_path):
    source, _ = adapted
    method, model = build(CONFIGS[name], adapted)
    train(model)
    method.save(model, tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # transformers' own, of PEFT's call
        how = {"quantization_config": model.get_base_model().config.quantization_config} if name == "qlora" else {}
        base = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32, **how)
        if base.get_input_embeddings().weight.shape[0] < 386:
            base.resize_token_embeddings(386, mean_resizing=False)
        plain = peft.PeftModel.from_pretrained(base, tmp_path / "saved").eval()
    keep_as_quantised(base, torch.float32)  # as here: some CPUs round the constants at the first pass
    with torch.no_grad():
        difference = float((plain(ROW).logits - model(ROW).logits).abs().max())
    assert difference < 1e-5


def test_merged_equals_unmerged(adapted):
    _, model = build(LoraConfig(dropout=0.0), adapted)
    train(model)
    tied = model.get_base_model().config.tie_word_embeddings
    with torch.no_grad():
        expected = model(ROW).logits
        merged = model.merge_and_unload(safe_merge=True)
        assert float((merged(ROW).logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert type(merged.get_input_embeddings()) is torch.nn.Embedding
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == tied


def test_generation_stops_at_the_new_end(assets, tmp_path):
    source, tokenizer = locate(make_llama(tmp_path / "model", assets, "untied"), tmp_path)
    _, model = build(LoraConfig(dropout=0.0), (source, tokenizer))
    settings = GenerationSettings(max_new_tokens=8, precision=Precision("fp32", "cpu", "test"), device=CPU)
    head = model.get_base_model().get_output_embeddings().token_adapter.trainable_tokens_delta["default"]
    assert generate_texts(model, tokenizer, ["a cat"], settings) != [""]  # control
    with torch.no_grad():
        last = model.get_base_model().model(torch.tensor([tokenizer("a cat").input_ids])).last_hidden_state[0, -1]
        head[1] = 100 * last
    assert generate_texts(model, tokenizer, ["a cat"], settings) == [""]


def test_what_peft_cannot_train_is_refused(assets, tmp_path):
    adapted = locate(make_llama(tmp_path / "model", assets, "untied"), tmp_path)
    with pytest.raises(ConfigError, match="leave lm_head out, or set method=full"):
        build(LoraConfig(target_modules=("q_proj", "lm_head")), adapted)
    source, _ = adapted
    method = make_method(LoraConfig())
    base = method.load(source, HOW)
    base.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(386))
    with pytest.raises(ConfigError, match=r"has a bias, which PEFT leaves out .*; set method=full"):
        method.make_trainable(base, 1, source.vocabulary.new_ids)
    method.make_trainable(base, 1)  # control
