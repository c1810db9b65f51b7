"""Model and data from a stand-in of the Hub, and the export back to it: the whole pipeline and the real client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from llmtune.runs.manifest import Manifest

sys.path.insert(0, str(Path(__file__).parents[1]))
pytest_plugins = ["hub_stand_in"]
ASSETS = Path(__file__).parents[1] / "assets"
TOKEN = "hf_neverprinted"
SHORT = [
    "data.max_seq_len=64",
    "train.max_steps=2",
    "data.num_examples=32",
    "evaluate.sample_max_new_tokens=4",
    "evaluate.num_general_examples=0",
]
FROM_HUB = ["model=them/tiny", "model.revision=v1", "data=hub", "data.id=them/texts", *SHORT]


@pytest.fixture
def filled(hub):
    """A model with a tag and a data set, each with a newer commit beside."""
    model = hub.add("models", "them/tiny", ASSETS / "tiny_llama")
    model.refs["v1"] = model.refs["main"]
    model.commit({"generation_config.json": b"{}"})
    hub.add("datasets", "them/texts", {"data.jsonl": (ASSETS / "examples.jsonl").read_bytes()})
    return hub


def commits(manifest: Manifest) -> tuple[str, str]:
    return manifest.section("model")["revision"], manifest.section("data")["sources"][0]["revision"]


def test_commits_are_recorded_and_the_cache_is_enough_for_them(workplace, filled, monkeypatch):
    expected = (
        filled.repos["models", "them/tiny"].refs["v1"],
        filled.repos["datasets", "them/texts"].refs["main"],
    )
    assert workplace.type(*FROM_HUB) == 0
    assert commits(workplace.manifest) == expected
    filled.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert workplace.type("prepare", *FROM_HUB) == 0
    assert workplace.type("prepare", *FROM_HUB, "data.split_seed=1") == 0, "the examples are prepared anew"
    assert commits(workplace.manifest) == expected


def test_the_export_goes_up_with_its_card(workplace, filled, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    filled.account(TOKEN, "me")
    filled.fail("PUT /lfs", 503)
    words = [*FROM_HUB, "export.push_to_hub=tuned", "export.formats=[adapter]", "tracking.log_text=false"]
    assert workplace.type("train", "export", *words) == 2
    run = workplace.newest.path
    shown = capsys.readouterr()
    assert f"upload the finished export later with: python -m llmtune export run={run}" in shown.err
    filled.faults.clear()
    assert workplace.type("export", f"run={run}") == 0
    assert workplace.newest.path == run
    assert "exported adapter: finished earlier" in capsys.readouterr().out
    repo = filled.repos["models", "me/tuned"]
    result = Manifest(workplace.newest.manifest_file).stage("export")["adapter"]["hub"]
    assert (result["repo"], result["commit"], result["private"]) == ("me/tuned", repo.refs["main"], True)
    files = repo.commits[repo.refs["main"]]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(files)
    words_of_examples = [json.loads(line)["prompt"] for line in (ASSETS / "examples.jsonl").read_text().splitlines()]
    for name, content in files.items():
        assert str(workplace.folder).encode() not in content, f"{name} names a folder of this machine"
        assert name == "tokenizer.json" or not any(text.encode() in content for text in words_of_examples), name
        assert TOKEN.encode() not in content
    assert TOKEN not in workplace.newest.log_file.read_text()


def test_an_upload_that_cannot_be_is_refused_before_training(workplace, filled, capsys):
    assert workplace.type(*FROM_HUB, "export.push_to_hub=me/tuned", "tracking.backend=none") == 2
    assert "export.push_to_hub=me/tuned" in capsys.readouterr().err
    assert not workplace.manifest.stage("prepare") and not workplace.newest.checkpoints.exists()
    assert workplace.type("train", *FROM_HUB, "export.push_to_hub=me/tuned", "tracking.backend=none") == 0


def test_models_and_adapters_on_the_hub_are_named_by_their_id(workplace, filled, tmp_path, capsys):
    base = filled.repos["models", "them/tiny"].refs["v1"]
    adapter = _adapter(tmp_path / "adapter", base)
    filled.add("models", "them/adapter", adapter)
    asked = ["--prompt", "x", "--max-length", "3"]
    assert workplace.type("generate", "run=them/tiny", *asked) == 0
    assert workplace.type("generate", "run=them/adapter", *asked) == 0
    said = capsys.readouterr().out
    assert "model: tiny as it is" in said and "model: adapter " in said

    examples = f"data.eval_path={ASSETS / 'text.jsonl'}"
    assert workplace.type("evaluate", "run=them/adapter", examples, "tracking.backend=none") == 0
    assert workplace.manifest.section("model")["revision"] == base
    assert workplace.manifest.stage("evaluate")["loss"] != workplace.manifest.stage("evaluate")["base_loss"]

    words = [f"data.path={ASSETS / 'examples.jsonl'}", *SHORT, "tracking.backend=none"]
    assert workplace.type("train", "method.adapter=them/adapter", *words) == 0
    assert workplace.manifest.section("adapter")["sha256"]
    assert workplace.manifest.section("model")["revision"] == base


def _adapter(folder: Path, base_commit: str) -> Path:
    """What plain PEFT writes for an adapter on `them/tiny`."""
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny_llama")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, revision=base_commit)
    model = peft.get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = "them/tiny"
    model.save_pretrained(folder)
    return folder


def test_a_refusal_is_one_sentence_and_status_2(hub_server, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub_server.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ASSETS.parents[1] / "src")}
    command = [sys.executable, "-m", "llmtune", "prepare", "model=them/tiny", "data=embedded_code"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "llmtune: model.id=them/tiny: the Hub doesn't take the token in HF_TOKEN: it is wrong or expired; make a new "
        "one and log in with `hf auth login` or set HF_TOKEN"
    )
    assert TOKEN not in done.stdout + done.stderr
