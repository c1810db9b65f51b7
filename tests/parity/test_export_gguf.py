"""A GGUF file says what the trained model says, in transformers' reader and, where it's installed, in llama.cpp."""

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from llmtune.export.gguf import GgufFormat
from llmtune.export.gguf_files import reader, vocabulary
from llmtune.export.gguf_files.architecture import architecture_of, why_not
from llmtune.export.gguf_files.metadata import add_metadata
from llmtune.export.gguf_files.tensors import stored_tensors, write_tensors
from llmtune.export.gguf_q4_k_m import GgufQ4KMFormat
from llmtune.export.gguf_q8_0 import GgufQ80Format
from llmtune.export.merge import load_unmerged
from tiny_shapes import SHAPE
from tiny_tokenizers import LLAMA3, PREFIXED, QWEN2, REPLACED, byte_level, expression, sentencepiece
from tuned_models import train_and_describe

HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None
needs_llama_cpp = pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs `pip install llama-cpp-python`, a build in C++")
TEXTS = ["He's 12 345 times\n\n  there. ", "<|im_start|>user\nÅre 日本 🙂<|im_end|>\n", " a", "\t\tthe e\u0301"]
PIECES = ["the", "he", " a", "  ", "\n", "\n\n", "\t", "12345", "1", "'s", "'S", "'LL", "é", "e\u0301", "日本語", "🙂"]
PIECES += ["<s>", "</s>", "Hello", "!?", " -- ", "½", "Ⅷ", "\r\n", "ǅ", "\u00a0", "\u3000", "_", "٣", "."]
PLAIN = pre_tokenizers.ByteLevel(False)
TOKENIZERS = {
    "gpt-2": lambda: byte_level(PLAIN),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), PLAIN),
    "qwen2": lambda: byte_level(*expression(QWEN2)),
    "llama-bpe": lambda: byte_level(*expression(LLAMA3), ignore_merges=True),
    "dbrx": lambda: byte_level(*expression(LLAMA3)),
    "prefixed": lambda: sentencepiece(PREFIXED),
    "replaced": lambda: sentencepiece(REPLACED),
}
CONVERSATION = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
ROWS = 400  # 16 more than the tokenizer has tokens
WIDE = {**SHAPE, "vocab_size": ROWS, "hidden_size": 64, "head_dim": 16, "max_position_embeddings": 128}
DEEP = {**WIDE, "num_hidden_layers": 7}
WINDOW = {"sliding_window": 4, "query_pre_attn_scalar": 16}


def rope(kind: str, **more) -> dict:
    return {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32, **more}


CONFIGS = {
    "llama": LlamaConfig(**WIDE),
    "llama, biases": LlamaConfig(**WIDE, attention_bias=True, mlp_bias=True),
    "llama, tied": LlamaConfig(**WIDE, tie_word_embeddings=True),
    "llama 3": LlamaConfig(**WIDE, rope_parameters=rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0)),
    "llama, linear": LlamaConfig(**WIDE, rope_parameters=rope("linear")),
    "llama, yarn": LlamaConfig(**WIDE, rope_parameters=rope("yarn")),
    "mistral": MistralConfig(**WIDE, sliding_window=None),
    "qwen2": Qwen2Config(**WIDE),
    "qwen2, yarn": Qwen2Config(**WIDE, rope_parameters=rope("yarn")),
    "qwen3": Qwen3Config(**{**WIDE, "head_dim": 32}),
    "gemma": GemmaConfig(**WIDE),
    "gemma2": Gemma2Config(**DEEP, **WINDOW, final_logit_softcapping=3.0, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(
        **DEEP,
        **WINDOW,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "smollm3": SmolLM3Config(**DEEP),
    "gpt2": GPT2Config(
        vocab_size=ROWS, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2, eos_token_id=2
    ),
}
READABLE = [name for name, config in CONFIGS.items() if reader.can_read(architecture_of(config))]
ROUNDED = 1e-5
"""Share of the largest logit by which sums of float32 numbers in another order differ."""
TABLE = {"gemma", "gemma2", "gemma3", "gpt2"}
TABLE_SHARE = 5e-3
"""llama.cpp looks GELU up in a table of 16-bit numbers: 0.0004 to 0.001 of the largest logit on these models."""


@pytest.fixture(scope="module")
def context(tiny_llama, examples_file, tmp_path_factory):
    return train_and_describe(tiny_llama, "lora", examples_file, tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def written(context, tmp_path_factory) -> Path:
    """The tuned tiny Llama in 16 bits."""
    folder = tmp_path_factory.mktemp("gguf")
    GgufFormat().write(context, folder)
    return folder


def random_model(name: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").eval()
    for key, weight in model.named_parameters():  # new norms are all 1 and new biases all 0, which hides mistakes
        if "norm" in key or "ln_" in key or "bias" in key:
            torch.nn.init.normal_(weight.data, 0.0 if "gemma" in name or "bias" in key else 1.0, 0.2)
    return model


def write(model, folder: Path, tiny_llama: Path, kind: str) -> None:
    """A model beside the tiny Llama's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    own = architecture_of(model.config)
    writer = gguf.GGUFWriter(folder / "model.gguf", own.name)
    add_metadata(writer, model.config, own)
    vocabulary.add_vocabulary(writer, vocabulary.read_vocabulary(tokenizer, ROWS, [2]))
    write_tensors(writer, list(stored_tensors(model, gguf.GGMLQuantizationType[kind])))


def logits_of(model, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def share(found, expected: np.ndarray) -> float:
    """Largest difference over the largest logit."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def some_ids(number: int = 60) -> list[int]:
    return torch.randint(3, 384, (number,), generator=torch.Generator().manual_seed(1)).tolist()


def test_the_file_holds_the_model_s_shape_and_weights(context, written):
    said = reader.read_metadata(written / "model-f16.gguf")
    assert said["general.architecture"] == "llama" and said["general.file_type"] == 1
    shape = {key.removeprefix("llama."): value for key, value in said.items() if key.startswith("llama.")}
    assert shape == {
        "block_count": 2,
        "context_length": 512,
        "embedding_length": 64,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "rope.dimension_count": 16,
        "rope.freq_base": 10000.0,
        "vocab_size": 384,
    }
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert said["tokenizer.ggml.eos_token_id"] == 2 and "tokenizer.ggml.eot_token_id" not in said
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(written / "model-f16.gguf").tensors}
    assert len(tensors) == 2 + 2 * 9 and "output.weight" not in tensors  # the head is tied
    model = load_unmerged(context).merge_and_unload()  # pyright: ignore[reportCallIssue]
    keys = model.get_submodule("model.layers.1.self_attn.k_proj").weight.detach().half().numpy()
    pairs = [8 * half + row + 16 * head for head in range(2) for row in range(8) for half in range(2)]
    assert (tensors["blk.1.attn_k.weight"].data == keys[pairs]).all()
    assert tensors["blk.1.attn_norm.weight"].data.dtype == np.float32


def test_the_files_say_what_the_trained_model_says(context, written, tmp_path):
    trained = load_unmerged(context)
    ids = context.examples.input_ids(0).tolist()
    expected = logits_of(trained, ids)
    for chosen, least, most in ((GgufFormat(), 1e-6, 5e-3), (GgufQ80Format(), 5e-3, 0.1)):
        folder = written
        if chosen.name != "gguf":
            folder = tmp_path / chosen.name
            folder.mkdir()
            chosen.write(context, folder)
        runtime = reader.Runtime(folder)
        assert least < share(runtime.start([ids], [[1] * len(ids)])[0], expected) < most
        for text in TEXTS:
            assert runtime.text.encode(text) == context.tokenizer(text)["input_ids"]
            plain = context.tokenizer.decode(context.tokenizer(text)["input_ids"], skip_special_tokens=True)
            assert runtime.text.decode(runtime.text.encode(text)) == plain
        rendered = context.tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, tokenize=False)
        assert runtime.text.render(CONVERSATION) == rendered
        assert (runtime.text.end_token_ids, runtime.text.max_positions) == ([2], 512)
        assert f"FROM ./{chosen.file_name}\n" in (folder / "Modelfile").read_text()
        assert sum(file.stat().st_size for file in folder.iterdir()) < chosen.num_bytes(context)


def test_a_changed_weight_is_seen(context, written, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes((written / "model-f16.gguf").read_bytes())
    changed = gguf.GGUFReader(file, "r+")
    tensor = next(tensor for tensor in changed.tensors if tensor.name == "blk.0.attn_v.weight")
    tensor.data[0, 0] += 0.5
    del tensor, changed
    ids = context.examples.input_ids(0).tolist()
    found = reader.Runtime(tmp_path).start([ids], [[1] * len(ids)])[0]
    assert share(found, logits_of(load_unmerged(context), ids)) > 5e-3


def test_several_end_tokens_have_keys_of_their_own(tiny_llama, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = random_model("llama")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    add_metadata(writer, model.config, architecture_of(model.config))
    vocabulary.add_vocabulary(writer, vocabulary.read_vocabulary(tokenizer, ROWS, [2, 0, 7]))
    write_tensors(writer, list(stored_tensors(model, gguf.GGMLQuantizationType.F16)))
    said = reader.read_metadata(tmp_path / "model.gguf")
    assert [said[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == [2, 0, 7]
    assert reader.Runtime(tmp_path).text.end_token_ids == [2, 0, 7]
    if HAS_LLAMA_CPP:
        from llmtune.export.shipped.gguf import Runtime

        assert Runtime(tmp_path).text.end_token_ids == [2, 0, 7]


def test_what_does_not_fit_is_refused_before_training(context, monkeypatch, tmp_path):
    subject = context.subject
    assert GgufFormat().why_not(subject) is None
    config = json.loads((subject.source.folder / "config.json").read_text())
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((subject.source.folder / name).read_bytes())

    def refused(**changes) -> str:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        return str(GgufFormat().why_not(replace(subject, source=replace(subject.source, folder=tmp_path))))

    assert "computes llama with silu, and this model has relu" in refused(hidden_act="relu")
    assert "384 tokens, 383 rows" in refused(vocab_size=383)
    monkeypatch.setattr("llmtune.export.gguf.has_llama_cpp", lambda: False)
    monkeypatch.setattr("llmtune.export.gguf_files.quantise.has_llama_cpp", lambda: False)
    monkeypatch.setattr("llmtune.export.gguf_files.quantise.shutil.which", lambda name: None)
    assert GgufFormat().why_not(subject) is None and GgufFormat().judge == "llmtune.export.gguf_files.reader"
    assert "is checked in llama.cpp for this architecture; `pip install" in refused(
        model_type="gemma", hidden_act="gelu_pytorch_tanh"
    )
    assert "needs llama.cpp's quantiser; `pip install llama-cpp-python`" in str(GgufQ4KMFormat().why_not(subject))


@pytest.mark.slow
@pytest.mark.parametrize("name", READABLE)
def test_every_architecture_in_transformers_reader(name, tiny_llama, tmp_path):
    model, ids = random_model(name), some_ids()
    assert why_not(model.config) is None
    expected = logits_of(model, ids)
    write(model, tmp_path, tiny_llama, "F32")
    runtime = reader.Runtime(tmp_path)
    assert share(runtime.start([ids], [[1] * len(ids)])[0], expected) < ROUNDED
    runtime.start([[2, *ids[:9]], ids[:10]], [[0] + [1] * 9, [1] * 10])
    stepped = runtime.step([ids[9], ids[10]])
    assert share(stepped[0], logits_of(model, ids[:10])[-1]) < ROUNDED
    assert share(stepped[1], logits_of(model, ids[:11])[-1]) < ROUNDED


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_in_llama_cpp(name, tiny_llama, tmp_path):
    from llmtune.export.shipped.gguf import Runtime

    model, ids = random_model(name), some_ids()
    expected = logits_of(model, ids)
    write(model, tmp_path, tiny_llama, "F32")
    runtime = Runtime(tmp_path, exact=True)
    bound = TABLE_SHARE if name in TABLE else ROUNDED
    assert share(runtime.start([ids], [[1] * len(ids)])[0], expected) < bound
    runtime.start([[2, *ids[:9]], ids[:10]], [[0] + [1] * 9, [1] * 10])
    stepped = runtime.step([ids[9], ids[10]])
    assert share(stepped[0], logits_of(model, ids[:10])[-1]) < bound
    assert share(stepped[1], logits_of(model, ids[:11])[-1]) < bound
    assert share(runtime.step([5, 7])[1], logits_of(model, [*ids[:11], 7])[-1]) < bound


@pytest.mark.slow
@needs_llama_cpp
def test_llama_cpp_reads_text_as_in_training(context, written):
    from llmtune.export.shipped.gguf import Runtime

    runtime = Runtime(written)
    for text in TEXTS:
        assert runtime.text.encode(text) == context.tokenizer(text)["input_ids"]
        plain = context.tokenizer.decode(context.tokenizer(text)["input_ids"], skip_special_tokens=True)
        assert runtime.text.decode(runtime.text.encode(text)) == plain
    rendered = context.tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, tokenize=False)
    assert runtime.text.render(CONVERSATION) == rendered
    assert (runtime.text.end_token_ids, runtime.text.max_positions) == ([2], 512)


@pytest.mark.slow
@needs_llama_cpp
def test_llama_cpp_makes_room_for_longer_texts(context, written, monkeypatch):
    from llmtune.export.shipped import gguf as shipped

    monkeypatch.setattr(shipped, "_LEAST_ROOM", 1)
    ids = (some_ids(250) + some_ids(20))[:262]
    runtime = shipped.Runtime(written)
    runtime.start([ids[:250]], [[1] * 250])
    for token in ids[250:]:
        last = runtime.step([token])[0]
    assert share(last, logits_of(load_unmerged(context), ids)[-1]) < 0.01


@pytest.mark.slow
@needs_llama_cpp
def test_four_bits_by_llama_cpp_s_quantiser(context, tmp_path):
    chosen = GgufQ4KMFormat()
    assert chosen.why_not(context.subject) is None
    chosen.write(context, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["Modelfile", "model-q4_k_m.gguf"]
    assert reader.read_metadata(tmp_path / "model-q4_k_m.gguf")["general.file_type"] == 15
    from llmtune.export.shipped.gguf import Runtime

    ids = context.examples.input_ids(0).tolist()
    found = Runtime(tmp_path).start([ids], [[1] * len(ids)])[0]
    assert 0.005 < share(found, logits_of(load_unmerged(context), ids)) < 0.5


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_encodes_any_text_as_the_tokenizer_does(name, tmp_path):
    from llmtune.export.shipped.gguf import Runtime

    tokenizer = TOKENIZERS[name]()
    rows = len(tokenizer) + 3
    assert vocabulary.why_not(tokenizer, rows, 1) is None
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SHAPE, "vocab_size": rows}))
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    add_metadata(writer, model.config, architecture_of(model.config))
    vocabulary.add_vocabulary(writer, vocabulary.read_vocabulary(tokenizer, rows, [2]))
    write_tensors(writer, list(stored_tensors(model, gguf.GGMLQuantizationType.F16)))
    text, chance = Runtime(tmp_path).text, random.Random(0)
    for _ in range(500):
        written = "".join(chance.choices(PIECES, k=chance.randint(1, 9)))
        ids = tokenizer(written)["input_ids"]
        assert text.encode(written) == ids
        assert text.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)
