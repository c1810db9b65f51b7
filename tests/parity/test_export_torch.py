"""The formats `torchscript` and `torch_export` equal the merged model, at shapes that they weren't traced with."""

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from llmtune.export.companions import write_scripts
from llmtune.export.format import ExportContext, ExportFormat
from llmtune.export.gate.check import Gate
from llmtune.export.merge import load_merged
from llmtune.export.torch_export import TorchExportFormat, write_exported
from llmtune.export.torchscript import TorchScriptFormat, write_traced
from llmtune.export.writing import write_export
from tiny_shapes import CAPPED, SHAPE, VOCABULARY
from tuned_models import train_and_describe

FORMATS = {"torchscript": TorchScriptFormat, "torch_export": TorchExportFormat}
WRITERS = {"torchscript": (write_traced, "model.ts"), "torch_export": (write_exported, "model.pt2")}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
ARCHITECTURES = {
    "gpt2": GPT2Config(**GPT2),
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=4),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2 with a window in one layer": Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma": GemmaConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, **CAPPED, sliding_window=4),
    "gemma3_text": Gemma3TextConfig(
        **SHAPE, query_pre_attn_scalar=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "smollm3": SmolLM3Config(**SHAPE),
}


@pytest.fixture(scope="module")
def trained(assets, examples_file, tmp_path_factory) -> Any:
    """Trains each model once."""
    made: dict[str, ExportContext] = {}

    def get(model_name: str) -> ExportContext:
        if model_name not in made:
            work = tmp_path_factory.mktemp(model_name)
            made[model_name] = train_and_describe(assets / model_name, "lora", examples_file, work)
        return made[model_name]

    return get


def load_runtime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`Runtime` of an export's folder, its neighbours found as they are for a user."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "text", raising=False)
    spec = importlib.util.spec_from_file_location("runtime_of_export", folder / "runtime.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delitem(sys.modules, "text")
    return module.Runtime(folder, device="cpu")


def written(chosen: ExportFormat, context: ExportContext, folder: Path) -> Path:
    folder.mkdir()
    chosen.write(context, folder)
    write_scripts(chosen.runtime, folder)
    return folder


def random_rows(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(batch))


def share(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def assert_equals(runtime: Any, model: PreTrainedModel, batch: int, length: int, num_padding: int) -> None:
    """A batch whose first row is padded on the left, read in part and then token by token, against one forward."""
    rows = random_rows(batch, length)
    mask = torch.ones_like(rows)
    mask[0, :num_padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = model(input_ids=rows, attention_mask=mask, position_ids=positions, use_cache=False).logits
    at_once = num_padding + 1
    found = [runtime.start(rows[:, :at_once].tolist(), mask[:, :at_once].tolist())]
    found += [runtime.step(rows[:, place].tolist())[:, None] for place in range(at_once, length)]
    real = mask.bool()
    assert share(torch.cat(found, dim=1)[real], expected[real]) < 1e-5
    alone = model(input_ids=rows[:1, num_padding:], use_cache=False).logits
    assert share(found[0][:1, -1], alone[:, 0]) < 1e-5


@torch.inference_mode()
def greedy(model: PreTrainedModel, ids: list[int], num_tokens: int) -> list[int]:
    """What the model writes on, each time from the beginning."""
    for _ in range(num_tokens):
        ids = [*ids, int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    return ids[-num_tokens:]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model_name", ["tiny_llama", pytest.param("tiny_gpt2", marks=pytest.mark.slow)])
def test_it_equals_the_merged_model(trained, tmp_path, monkeypatch, model_name, name):
    context = trained(model_name)
    chosen = FORMATS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        folder = written(chosen, context, tmp_path / name)
        runtime = load_runtime(folder, monkeypatch)
    model = load_merged(context)
    assert chosen.why_not(context.subject) is None
    for batch, length, num_padding in ((1, 9, 0), (3, 14, 5), (2, 40, 20)):  # traced with 2 rows of 3 and 4 tokens
        assert_equals(runtime, model, batch, length, num_padding)
    start = [5, 6, 7]
    tokens = [int(runtime.start([start], [[1, 1, 1]])[0, -1].argmax())]
    while len(tokens) < 24:
        tokens.append(int(runtime.step(tokens[-1:])[0].argmax()))
    assert tokens == greedy(model, start, 24)
    untrained = AutoModelForCausalLM.from_pretrained(context.source.folder, dtype=torch.float32)
    rows = random_rows(1, 9)
    with torch.inference_mode():
        moved = share(untrained(input_ids=rows).logits, model(input_ids=rows).logits)
    assert moved > 0.05, "training moved nothing, so equality would say nothing"


@pytest.mark.parametrize("name", FORMATS)
def test_the_file_holds_tied_weights_once_no_path_and_fits_the_room_that_was_asked(trained, tmp_path, name):
    context = trained("tiny_llama")
    folder = written(FORMATS[name](), context, tmp_path / name)
    model: Any = load_merged(context)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    with ZipFile(folder / WRITERS[name][1]) as archive:
        sizes = [entry.file_size for entry in archive.infolist()]
        content = b"".join(map(archive.read, archive.namelist()))
    weights = [number for number in sizes if number in {parameter.numel() * 4 for parameter in model.parameters()}]
    assert sum(weights) == size
    for place in (Path(torch.__file__).parent.parent, Path(__file__).parent.parent.parent, tmp_path):
        assert str(place).encode() not in content
    assert sum(file.stat().st_size for file in folder.iterdir()) <= FORMATS[name]().num_bytes(context)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_an_export_passes_the_gate(trained, tmp_path, name):
    gate = Gate(trained("tiny_gpt2"), tmp_path / ".asked")
    try:
        result = write_export(FORMATS[name](), trained("tiny_gpt2"), tmp_path / name, gate)
    finally:
        gate.close()
    assert all(figure.passed for figure in result.report.figures)
    assert {"model.ts", "model.pt2"} & {file.name for file in result.folder.iterdir()} == {WRITERS[name][1]}


def test_torchscript_names_its_inputs_and_bakes_in_no_device(trained, tmp_path):
    model = load_merged(trained("tiny_llama"))
    write_traced(model, tmp_path / "model.ts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded: Any = torch.jit.load(str(tmp_path / "model.ts"))
    names = [argument.name for argument in loaded.forward.schema.arguments][1:]
    assert names[:5] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values_0_key",
        "past_key_values_0_value",
    ]
    for graph in (loaded.forward.inlined_graph, loaded.empty_past.inlined_graph):
        assert "aten::" in str(graph)
        assert "Device = prim::Constant" not in str(graph)
    assert [file.name for file in tmp_path.iterdir()] == ["model.ts"]


def test_a_model_of_another_architecture_is_refused():
    from types import SimpleNamespace

    subject: Any = SimpleNamespace(config=PreTrainedConfig())
    for chosen in FORMATS.values():
        assert "isn't among those it is tested with" in str(chosen().why_not(subject))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_equals_its_model(tmp_path, monkeypatch, architecture, name):
    config = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    attention = "eager" if config.model_type == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    write, file = WRITERS[name]
    write(model, tmp_path / file)
    config.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    write_scripts(name, tmp_path)
    runtime = load_runtime(tmp_path, monkeypatch)
    for batch, length, num_padding in ((1, 9, 0), (3, 14, 5), (2, 40, 20)):
        assert_equals(runtime, model, batch, length, num_padding)


def test_a_program_moves_to_another_device_with_all_that_it_makes(tiny_llama, tmp_path):
    """On torch's `meta` device, where anything left behind on the CPU raises."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    write_exported(model, tmp_path / "model.pt2")
    model.config.save_pretrained(tmp_path)
    model.generation_config.save_pretrained(tmp_path)
    write_scripts("torch_export", tmp_path)
    code = (
        "import torch; from pathlib import Path; from runtime import Runtime\n"
        "moved = Runtime(Path('.'), device='meta')\n"
        "ids = torch.zeros((2, 4), dtype=torch.long, device='meta')\n"
        "past = [torch.zeros((2, heads, 0, size), device='meta') for heads, size in moved._past_shapes]\n"
        "print({str(part.device) for part in moved.model(ids, ids + 1, ids, *past)})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'meta'}"
