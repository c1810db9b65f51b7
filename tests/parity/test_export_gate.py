"""Each format passes the gate as it was written, and fails it with one weight, template token or end token changed."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llmtune.config.export import EXPORT_FORMATS
from llmtune.errors import ExportCheckFailed
from llmtune.export.gate.check import Gate
from llmtune.export.merge import load_merged
from llmtune.export.registry import make_format
from tuned_models import export, train_and_describe

QUICK = ("torchscript",)
SLOW = ("onnx", "onnx_int8", "onnx_int4", "torch_export", "gguf", "gguf_q8_0")
FORMATS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope="module")
def context(assets, examples_file, tmp_path_factory):
    work = tmp_path_factory.mktemp("tuned")
    return train_and_describe(assets / "tiny_llama", "lora", examples_file, work)


@pytest.fixture(scope="module")
def gate(context, tmp_path_factory) -> Iterator[Gate]:
    made = Gate(context, tmp_path_factory.mktemp("gate") / "asked")
    yield made
    made.close()


@pytest.fixture(scope="module")
def exported(context, tmp_path_factory) -> Callable[[str], Path]:
    """Writes each format once, through the gate."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = export(name, context, tmp_path_factory.mktemp("exports") / name).folder
        return made[name]

    return get


def change_bytes(path: Path, old: bytes, new: bytes) -> None:
    """Change a stretch of the same length, each time it stands there."""
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def model_file(folder: Path) -> Path:
    """The largest file."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def stretches(context) -> list[bytes]:
    """A stretch of a merged weight as float32, as it stands in a file that holds the matrix as it is or transposed."""
    weight = load_merged(context).model.layers[0].self_attn.v_proj.weight.numpy()
    return [np.ascontiguousarray(part).tobytes() for part in (weight[0, :8], weight[:8, 0])]


def test_every_format_is_tested():
    assert {"adapter", "hf", "gguf_q4_k_m", *QUICK, *SLOW} == set(EXPORT_FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_template_is_found(context, gate, exported, tmp_path, name):
    folder = shutil.copytree(exported(name), tmp_path / name)
    file = model_file(folder) if name.startswith("gguf") else folder / "chat_template.jinja"
    change_bytes(file, b"<|im_start|>{{", b"<|im_stert|>{{")
    failed = failures(gate, name, folder)
    assert failed == {"conversations_rendered_otherwise"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_end_token_is_found(context, gate, exported, tmp_path, name):
    folder = shutil.copytree(exported(name), tmp_path / name)
    if name.startswith("gguf"):
        key, kind = b"tokenizer.ggml.eos_token_id", (4).to_bytes(4, "little")
        end = context.subject.end_token_ids[0].to_bytes(4, "little")
        change_bytes(model_file(folder), key + kind + end, key + kind + (7).to_bytes(4, "little"))
    else:
        content = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps({**content, "eos_token_id": 7}))
    assert failures(gate, name, folder) == {"end_tokens_wrong"}


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "torch_export"))]
)
def test_one_changed_weight_is_found(context, gate, exported, tmp_path, name):
    folder = shutil.copytree(exported(name), tmp_path / name)
    content = model_file(folder).read_bytes()
    found = next(stretch for stretch in stretches(context) if stretch in content)
    other = np.frombuffer(found, np.float32).copy()
    other[3] += 0.5
    change_bytes(model_file(folder), found, other.tobytes())
    assert "logit_difference" in failures(gate, name, folder)


def failures(gate: Gate, name: str, folder: Path) -> set[str]:
    """Names of the figures that don't pass; the message names each."""
    report = gate.check(make_format(name), folder)
    failed = {figure.name for figure in report.figures if not figure.passed}
    with pytest.raises(ExportCheckFailed) as told:
        report.require(name)
    assert all(figure in str(told.value) for figure in failed)
    return failed
