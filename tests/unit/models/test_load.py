"""Base weights: their type, and that none is made up or left unread."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmtune.config.model import ModelConfig
from llmtune.errors import ModelError
from llmtune.models.load import (
    LoadSettings,
    checkpoint_dtype,
    device_for_float32,
    frozen_dtype,
    load_base,
    safetensors_header,
)
from llmtune.models.source import locate_model

CPU = torch.device("cpu")


def source_of(folder, tmp_path):
    return locate_model(ModelConfig(name="tiny", source="folder", path=str(folder)), tmp_path)


def load(folder, tmp_path, dtype=torch.float32):
    return load_base(source_of(folder, tmp_path), dtype=dtype, attention="sdpa", device=CPU)


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def copy(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "copy")


@pytest.mark.fast
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_is_the_stated_one(tiny_model, tmp_path, dtype):
    model = load(tiny_model, tmp_path, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training
    stored = load_file(tiny_model / "model.safetensors")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor.to(dtype)) for name, tensor in stored.items() if name in loaded)


@pytest.mark.fast
def test_checkpoint_and_frozen_types(copy, tmp_path):
    assert checkpoint_dtype(source_of(copy, tmp_path)) == torch.float32
    for stored, kept_on_cpu in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        rewrite(copy, lambda weights, stored=stored: {name: tensor.to(stored) for name, tensor in weights.items()})
        source = source_of(copy, tmp_path)
        assert checkpoint_dtype(source) == stored
        assert frozen_dtype(source, LoadSettings(torch.bfloat16, CPU)) == kept_on_cpu
        assert frozen_dtype(source, LoadSettings(torch.float32, CPU)) == torch.float32
        assert frozen_dtype(source, LoadSettings(torch.float16, torch.device("cuda"))) == torch.float16


@pytest.mark.fast
def test_incomplete_weights_are_refused(copy, tmp_path):
    name = "model.layers.0.self_attn.q_proj.weight"
    rewrite(copy, lambda weights: {key: tensor for key, tensor in weights.items() if key != name})
    with pytest.raises(ModelError, match=f"1 weights are missing from the files .*: {name}"):
        load(copy, tmp_path)


@pytest.mark.fast
def test_left_over_weights_are_refused(copy, tmp_path):
    rewrite(copy, lambda weights: {**weights, "model.layers.7.extra.weight": torch.ones(2)})
    with pytest.raises(ModelError, match=r"in the files but not in the model: model\.layers\.7\.extra"):
        load(copy, tmp_path)


@pytest.mark.fast
@pytest.mark.parametrize("kept", [0, 3, 8, 50, -1])
def test_a_half_finished_download_is_refused(copy, tmp_path, kept):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    assert safetensors_header(file)
    file.write_bytes(whole[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors isn't a readable safetensors file.*; download it again$"):
        checkpoint_dtype(source_of(copy, tmp_path))


@pytest.mark.fast
@pytest.mark.parametrize("content", [b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"\x08" + bytes(7) + b'{"a": 1}'])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="isn't a readable safetensors file; download it again"):
        safetensors_header(tmp_path / "model.safetensors")


@pytest.mark.fast
def test_wrong_shapes_and_architectures_are_refused(copy, tmp_path):
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**content, "intermediate_size": 128}))
    with pytest.raises(ModelError, match="tiny"):
        load(copy, tmp_path)
    (copy / "config.json").write_text(json.dumps({**content, "model_type": "nonsense"}))
    with pytest.raises(ModelError, match="tiny can't be loaded from"):
        load(copy, tmp_path)


@pytest.mark.fast
def test_loading_shows_no_bars(tiny_llama, tmp_path, capfd):
    load(tiny_llama, tmp_path)
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == ""


@pytest.mark.fast
@pytest.mark.parametrize(("missing", "expected"), [(0, "cuda"), (1, "cpu")])
def test_float32_goes_to_the_cpu_where_the_gpu_has_no_room(
    tiny_llama, tmp_path, monkeypatch, capsys, missing, expected
):
    source = source_of(tiny_llama, tmp_path)
    weights = load_file(tiny_llama / "model.safetensors").values()
    needed = 6 * sum(weight.numel() for weight in weights)  # 4 bytes a weight and half as much again
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed - missing, 2**40))
    assert device_for_float32(source, torch.device("cuda")).type == expected
    assert ("merged and checked on the CPU" in capsys.readouterr().out) == (expected == "cpu")
    assert device_for_float32(source, CPU) == CPU
