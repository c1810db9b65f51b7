"""Where models are found: folders, a Hub cache without network; every refusal's text."""

import hashlib
import json
import shutil

import huggingface_hub
import pytest
import torch

from llmtune.config.model import ModelConfig
from llmtune.errors import ModelError
from llmtune.models import hub as hub_module
from llmtune.models.load import LoadSettings, load_base
from llmtune.models.source import locate_model, max_positions

COMMIT = "a" * 40
OTHER_COMMIT = "b" * 40


def folder_config(path):
    return ModelConfig(name="tiny", source="folder", path=str(path))


def hub_config(**changes):
    return ModelConfig(**{"name": "tiny", "source": "hub", "id": "someone/tiny", **changes})


def change_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


@pytest.fixture
def copy(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "copy")


@pytest.fixture
def hub_cache(tiny_llama, tmp_path, monkeypatch):
    """A Hub cache with one model whose branch main is at COMMIT, and no network."""
    repo = tmp_path / "hub" / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    shutil.copytree(tiny_llama, repo / "snapshots" / COMMIT)
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        hub_module, "snapshot_download", lambda *args, **how: real(*args, cache_dir=tmp_path / "hub", **how)
    )
    return repo


@pytest.mark.fast
def test_folder(tiny_llama, tmp_path):
    found = locate_model(folder_config(tiny_llama), tmp_path)
    assert found.folder == tiny_llama and found.location == str(tiny_llama) and found.revision is None
    weights = (tiny_llama / "model.safetensors").read_bytes()
    assert found.weights_digest == hashlib.sha256(weights).hexdigest()


@pytest.mark.fast
def test_digest_covers_every_shard_and_changes(copy, tmp_path):
    one = locate_model(folder_config(copy), tmp_path).weights_digest
    (copy / "model-2.safetensors").write_bytes(b"second shard")
    two = locate_model(folder_config(copy), tmp_path).weights_digest
    (copy / "model-2.safetensors").write_bytes(b"second share")
    three = locate_model(folder_config(copy), tmp_path).weights_digest
    assert len({one, two, three}) == 3


@pytest.mark.fast
def test_folder_refusals(copy, tmp_path):
    with pytest.raises(ModelError, match="nowhere: no such folder"):
        locate_model(folder_config(tmp_path / "nowhere"), tmp_path)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors weights, and pickled ones"):
        locate_model(folder_config(copy), tmp_path)
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="isn't JSON"):
        locate_model(folder_config(copy), tmp_path)
    (copy / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no model_type"):
        locate_model(folder_config(copy), tmp_path)
    (copy / "config.json").unlink()
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no config.json.*PEFT adapter, give its base"):
        locate_model(folder_config(copy), tmp_path)


@pytest.mark.fast
def test_hub_cache_without_network(hub_cache, tmp_path):
    found = locate_model(hub_config(), tmp_path)
    assert (found.location, found.revision) == ("someone/tiny", COMMIT)
    pinned = locate_model(hub_config(revision=COMMIT), tmp_path)
    assert pinned.weights_digest == found.weights_digest
    how = LoadSettings(torch.float32, torch.device("cpu"))
    model = load_base(found, dtype=how.compute_dtype, attention="sdpa", device=how.device)
    assert model.name_or_path == "someone/tiny"


@pytest.mark.fast
def test_the_commit_is_told_where_the_model_comes_from(hub_cache, tmp_path):
    assert locate_model(hub_config(), tmp_path).origin == f"someone/tiny at {COMMIT[:12]} on the Hugging Face Hub"


@pytest.mark.fast
def test_hub_refusals_without_network(hub_cache, tmp_path):
    with pytest.raises(ModelError, match=r"model.id=someone/other: not in the Hub cache, and HF_HUB_OFFLINE is set"):
        locate_model(hub_config(id="someone/other"), tmp_path)
    with pytest.raises(ModelError, match=rf"model.revision={OTHER_COMMIT}: not in the Hub cache"):
        locate_model(hub_config(revision=OTHER_COMMIT), tmp_path)
    with pytest.raises(ModelError, match="not a Hub id; it reads owner/name"):
        locate_model(hub_config(id="a/b/c"), tmp_path)
    (hub_cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model.id=someone/tiny has no safetensors weights"):
        locate_model(hub_config(), tmp_path)


@pytest.mark.fast
def test_weights_that_an_index_lists_must_be_there(hub_cache, copy, tmp_path):
    index = json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}})
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"copy is incomplete: its index lists 1 weight files.*, model-00002-of-00002"):
        locate_model(folder_config(copy), tmp_path)
    (hub_cache / "snapshots" / COMMIT / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"model\.id=someone/tiny is incomplete"):
        locate_model(hub_config(revision=COMMIT), tmp_path)


@pytest.mark.fast
def test_own_code_is_refused_unless_asked_for_by_commit(hub_cache, copy, tmp_path):
    change_config(copy, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    with pytest.raises(ModelError, match="needs Python code of its own"):
        locate_model(folder_config(copy), tmp_path)
    change_config(hub_cache / "snapshots" / COMMIT, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    with pytest.raises(ModelError, match="needs Python code of its own"):
        locate_model(hub_config(revision=COMMIT), tmp_path)
    with pytest.raises(ModelError, match="full commit hash"):
        locate_model(hub_config(trust_remote_code=True, revision="main"), tmp_path)
    found = locate_model(hub_config(trust_remote_code=True, revision=COMMIT), tmp_path)
    assert found.trust_remote_code


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"max_position_embeddings": None, "n_positions": 1024}, 1024),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_max_positions_stand_in_the_config(copy, tmp_path, changes, expected):
    change_config(copy, **changes)
    assert max_positions(locate_model(folder_config(copy), tmp_path)) == expected


@pytest.mark.fast
def test_max_positions_of_gpt2(tiny_gpt2, tmp_path):
    expected = json.loads((tiny_gpt2 / "config.json").read_text())["n_positions"]
    assert max_positions(locate_model(folder_config(tiny_gpt2), tmp_path)) == expected
