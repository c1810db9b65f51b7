"""The ONNX formats equal the merged model, and their folders are as the ecosystem's readers look for them."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from llmtune.export.companions import write_scripts
from llmtune.export.graphs.onnx_blocks import Widths, blocks_of, quantise
from llmtune.export.graphs.onnx_graph import save_graph, step_graph
from llmtune.export.merge import load_merged
from llmtune.export.onnx import OnnxFormat
from llmtune.export.onnx_int4 import OnnxInt4Format
from llmtune.export.onnx_int8 import OnnxInt8Format
from tiny_shapes import CAPPED, SHAPE, VOCABULARY
from tuned_models import train_and_describe

FILES = {OnnxFormat: "model.onnx", OnnxInt8Format: "model_quantized.onnx", OnnxInt4Format: "model_q4.onnx"}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
WINDOW = 4
CONFIGS = {
    "gpt2": GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2),
    "llama": LlamaConfig(**SHAPE),
    "llama_tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma": GemmaConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, **CAPPED, sliding_window=WINDOW),
    "gemma3_text": Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=8, sliding_window=WINDOW),
}
PROMPTS = [[5, 9, 17, 33, 60, 21, 7], [40, 11, 3]]
NUM_STEPS = 20


def tiny(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    attention = "eager" if kind == "gemma2" else "sdpa"
    return AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation=attention).eval()


def runtime_in(folder: Path) -> Any:
    """The scripts that are shipped, as a program beside them would import them."""
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("shipped_runtime", folder / "runtime.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("text", None)
    return module.Runtime(folder, threads=1)


@pytest.fixture(scope="module")
def exported(assets, examples_file, tmp_path_factory):
    """Writes each (model, format) once: its context and its folder."""
    contexts, folders = {}, {}

    def get(name: str, chosen=OnnxFormat):
        if name not in contexts:
            work = tmp_path_factory.mktemp(name)
            contexts[name] = train_and_describe(assets / name, "lora", examples_file, work)
        if (name, chosen) not in folders:
            folder = folders[name, chosen] = tmp_path_factory.mktemp(f"{name}-{chosen.name}")
            with pytest.MonkeyPatch.context() as patch:
                if chosen is not OnnxFormat:  # tracing takes most of the time, and gives the same graph again
                    traced = get(name)[1] / "onnx" / "model.onnx"
                    patch.setattr("llmtune.export.graphs.onnx_graph.step_graph", lambda model: onnx_ir.load(traced))
                chosen().write(contexts[name], folder)
            write_scripts("onnx", folder)
        return contexts[name], folders[name, chosen]

    return get


def padded(rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    width = max(map(len, rows))
    return [[0] * (width - len(row)) + row for row in rows], [[0] * (width - len(row)) + [1] * len(row) for row in rows]


def assert_as(runtime: Any, model: PreTrainedModel) -> None:
    """The same logits alone, and in a padded batch through twenty steps, each compared with a pass over all tokens."""
    with torch.inference_mode():
        largest = float(model(torch.tensor(PROMPTS[:1])).logits.abs().max())
        for row in PROMPTS:
            expected = model(torch.tensor([row])).logits[0].numpy()
            np.testing.assert_allclose(runtime.start([row], [[1] * len(row)])[0], expected, rtol=0, atol=1e-5 * largest)
        rows = [list(row) for row in PROMPTS]
        logits = runtime.start(*padded(rows))[:, -1]
        for _ in range(NUM_STEPS):
            expected = np.stack([model(torch.tensor([row])).logits[0, -1].numpy() for row in rows])
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * largest)
            tokens = expected.argmax(-1).tolist()
            rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
            logits = runtime.step(tokens)


@pytest.mark.parametrize("name", ["tiny_llama", pytest.param("tiny_gpt2", marks=pytest.mark.slow)])
def test_the_graph_equals_the_merged_model_alone_padded_and_through_its_cache(exported, name):
    context, folder = exported(name)
    assert_as(runtime_in(folder), load_merged(context))


def test_the_folder_is_as_its_readers_look_for_it(exported):
    context, folder = exported("tiny_llama")
    assert {"config.json", "generation_config.json", "tokenizer.json", "genai_config.json"} < {
        file.name for file in folder.iterdir()
    }
    assert [file.name for file in (folder / "onnx").iterdir()] == ["model.onnx"]
    graph = onnx.load(folder / "onnx" / "model.onnx").graph
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    inputs = {one.name: one.shape for one in session.get_inputs()}
    outputs = {one.name: one.shape for one in session.get_outputs()}
    past = ["batch_size", 2, "past_sequence_length", 16]
    present = ["batch_size", 2, "total_sequence_length", 16]
    layers = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert inputs == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        **{f"past_key_values.{name}": past for name in layers},
    }
    assert outputs == {
        "logits": ["batch_size", "sequence_length", 384],
        **{f"present.{name}": present for name in layers},
    }
    assert str(context.source.folder) not in str(graph) and "llmtune" not in str(graph)
    genai = json.loads((folder / "genai_config.json").read_text())["model"]
    assert (genai["type"], genai["eos_token_id"], genai["decoder"]["num_key_value_heads"]) == ("llama", 2, 2)
    assert (folder / genai["decoder"]["filename"]).is_file()
    assert json.loads((folder / "config.json").read_text())["transformers.js_config"] == {"dtype": "fp32"}
    assert AutoConfig.from_pretrained(folder).model_type == "llama"


@pytest.mark.parametrize(("chosen", "largest"), [(OnnxInt8Format, 1e-3), (OnnxInt4Format, 0.3)])
@pytest.mark.parametrize("name", ["tiny_llama", pytest.param("tiny_gpt2", marks=pytest.mark.slow)])
def test_a_quantised_graph_is_smaller_and_close(exported, name, chosen, largest):
    context, folder = exported(name, chosen)
    graph = onnx.load(folder / "onnx" / FILES[chosen]).graph
    kinds = [node.op_type for node in graph.node]
    assert "MatMulNBits" in kinds and kinds.count("GatherBlockQuantized") == 1
    floats = [tensor.dims for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert (384, 64) not in map(tuple, floats) and (64, 384) not in map(tuple, floats)
    runtime, model = runtime_in(folder), load_merged(context)
    with torch.inference_mode():
        expected = model(torch.tensor(PROMPTS[:1])).logits[0].log_softmax(-1)
    found = torch.tensor(runtime.start(PROMPTS[:1], [[1] * len(PROMPTS[0])])[0]).log_softmax(-1)
    assert 0 < (expected.exp() * (expected - found)).sum(-1).mean() < largest


def test_a_shared_weight_is_stored_once_and_tracing_again_says_nothing_and_gives_the_same_bytes(
    exported, tmp_path, capfd, recwarn
):
    context, folder = exported("tiny_llama")
    file = folder / "onnx" / "model.onnx"
    shapes = [tuple(tensor.dims) for tensor in onnx.load(file).graph.initializer]
    assert shapes.count((384, 64)) == 1 and (64, 384) not in shapes
    model = load_merged(context)
    capfd.readouterr()
    recwarn.clear()
    save_graph(step_graph(model), tmp_path / "again.onnx")
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert (tmp_path / "again.onnx").read_bytes() == file.read_bytes()
    assert file.stat().st_size < OnnxFormat().num_bytes(context)


@pytest.mark.slow
def test_weights_too_large_for_one_file_stand_beside_the_graph(exported, tmp_path, monkeypatch):
    context, _ = exported("tiny_llama")
    monkeypatch.setattr("llmtune.export.graphs.onnx_graph.MAX_SINGLE_FILE_BYTES", 1000)
    OnnxFormat().write(context, tmp_path)
    write_scripts("onnx", tmp_path)
    assert {file.name for file in (tmp_path / "onnx").iterdir()} == {"model.onnx", "model.onnx_data"}
    own = json.loads((tmp_path / "config.json").read_text())["transformers.js_config"]
    assert own == {"dtype": "fp32", "use_external_data_format": True}
    assert_as(runtime_in(tmp_path), load_merged(context))


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(monkeypatch, missing):
    monkeypatch.setattr("llmtune.export.onnx.find_spec", lambda name: None if name == missing else object())
    subject: Any = SimpleNamespace(config=CONFIGS["llama"])
    assert OnnxFormat().why_not(subject) == f"needs {missing}; `pip install {missing}`"


def test_what_a_graph_cannot_hold_is_told_with_what_can():
    subject: Any = SimpleNamespace(config=AutoConfig.for_model("bloom"))
    reason = str(OnnxInt4Format().why_not(subject))
    assert reason.startswith("model_type bloom isn't among those it is tested with (")
    assert reason.endswith("; choose export.formats=[hf]")
    subject.config = CONFIGS["gemma2"]
    assert OnnxInt4Format().why_not(subject) is None


@pytest.mark.parametrize(("bits", "share"), [(4, 0.95), (8, 1.05)])
def test_rounded_blocks_are_closer_than_steps_over_their_range_would_be(bits, share):
    matrix = np.random.default_rng(0).normal(size=(50, 80)).astype(np.float32)
    codes, scales, zeros = blocks_of(matrix, bits)
    assert codes.shape == (50, 3, 32) and codes.max() <= 2**bits - 1
    back = ((codes - zeros[..., None].astype(np.float32)) * scales[..., None]).reshape(50, 96)
    assert np.abs(back[:, 80:]).max() == 0
    plain = np.pad(matrix, ((0, 0), (0, 16))).reshape(50, 3, 32)
    steps = (plain.max(-1) - plain.min(-1)) / (2**bits - 1)
    expected = np.square(np.repeat(steps, 32, axis=1)[:, :80]).mean() / 12  # of errors spread evenly over a step
    assert np.square(back[:, :80] - matrix).mean() < share * expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_every_architecture_in_every_width(kind, bits, tmp_path):
    """Random weights have nothing to spare, so that 4 bits show; float32 is equal through its cache."""
    model = tiny(kind)
    graph = step_graph(model)
    if bits < 32:
        quantise(graph, Widths(layers=bits, ends=8, delicate=8))
    write_runnable(graph, tmp_path)
    runtime = runtime_in(tmp_path)
    if bits == 32:
        assert_as(runtime, model)
        return
    with torch.inference_mode():
        expected = model(torch.tensor(PROMPTS[:1])).logits[0].log_softmax(-1)
    found = torch.tensor(runtime.start(PROMPTS[:1], [[1] * len(PROMPTS[0])])[0]).log_softmax(-1)
    kl = (expected.exp() * (expected - found)).sum(-1).mean()
    assert kl < {8: 0.01, 4: 0.3}[bits]
    rows = [list(row) for row in PROMPTS]
    logits = runtime.start(*padded(rows))[:, -1]
    for token in (8, 50, 30):
        rows = [[*row, token] for row in rows]
        logits = runtime.step([token, token])
    for row, last in zip(rows, logits, strict=True):  # the cache and the padding cost nothing beyond rounding
        alone = runtime.start([row], [[1] * len(row)])[0, -1]
        assert np.abs(alone - last).max() < (0.05 if bits == 8 else 0.1) * np.abs(alone).max()


def write_runnable(graph: Any, folder: Path) -> None:
    """A graph with the scripts and just enough of their files."""
    (folder / "onnx").mkdir()
    save_graph(graph, folder / "onnx" / "model.onnx")
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text("{}")
    write_scripts("onnx", folder)
