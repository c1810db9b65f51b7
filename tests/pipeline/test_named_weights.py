"""`run=` and `method.adapter=` for real: runs, checkpoints, plain models, adapters made elsewhere."""

import json
from pathlib import Path

import pytest
import torch

from llmtune.config.saved import load_config
from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.manifest import Manifest
from llmtune.runs.metrics_log import MetricsLog

from .conftest import ASSETS, SHORT

UNTRACKED = "tracking.backend=none"
FEW = "data.num_test_examples=8"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """An adapter that plain PEFT made, of another rank and on fewer layers than ours."""
    import peft
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("elsewhere") / "adapter"
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny_llama")
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(folder)
    return folder


def _stage(folder: RunFolder, name: str) -> dict:
    return Manifest(folder.manifest_file).stage(name)


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qlora", "full"))]
)
def test_evaluate_and_generate_take_each_methods_run_and_checkpoints(workplace, capsys, method) -> None:
    assert workplace.train("train", "evaluate", f"method={method}", FEW, UNTRACKED) == 0
    run = workplace.newest
    assert workplace.type("evaluate", f"run={run.best_checkpoint}") == 0
    again = workplace.newest
    assert again.path != run.path
    assert load_config(again.config_file).source_weights == str(run.best_checkpoint.resolve())
    assert _stage(again, "evaluate")["loss"] == _stage(run, "evaluate")["loss"]
    weights = Manifest(again.manifest_file).section("weights")
    assert set(weights["sha256"]) == {"model.safetensors" if method == "full" else "adapter_model.safetensors"}

    capsys.readouterr()
    for reference in ("latest", run.path.name, str(run.best_checkpoint)):
        assert workplace.type("generate", f"run={reference}", "--prompt", "It's", "generate.max_new_tokens=4") == 0
    said = capsys.readouterr().out
    assert said.count("It's") == 3
    assert said.count(f"model: {run.path.name}, {run.best_checkpoint.resolve().name}") == 3


def test_what_contradicts_the_trained_weights_is_refused(workplace, capsys) -> None:
    assert workplace.train("train", UNTRACKED) == 0
    run = workplace.newest
    for stage in ("evaluate", "export", "generate"):
        assert workplace.type(stage, f"run={run.path}", "method.rank=4", "train.num_epochs=9", "--prompt", "x") == 2
        errors = capsys.readouterr().err
        assert "method.rank=4: the run began with 16" in errors and "train.num_epochs=9: the run began with" in errors
        assert workplace.type(stage, f"run={run.path}", "method=full", "--prompt", "x") == 2
        assert "method.name=full: the run began with lora" in capsys.readouterr().err
    assert [listed.folder for listed in list_runs(workplace.folder / "runs")] == [run]


def test_a_run_that_took_anothers_weights_leads_to_them(workplace, capsys) -> None:
    assert workplace.train("train", UNTRACKED) == 0
    trained = workplace.newest
    assert workplace.type("evaluate", "run=latest", f"data.eval_path={ASSETS / 'text.jsonl'}") == 0
    measured = workplace.newest
    assert workplace.type("train", f"run={measured.path}") == 2
    assert f"trains nothing: it takes the weights of {trained.path}; name that one" in capsys.readouterr().err
    assert workplace.type("train", "run=latest") == 0
    assert "train: finished earlier" in capsys.readouterr().out
    words = [*SHORT, f"data.path={ASSETS / 'text.jsonl'}", UNTRACKED, "data.validation_fraction=0.2"]
    assert workplace.type("train", f"method.adapter={measured.path}", *words) == 0
    assert load_config(workplace.newest.config_file).method.adapter == str(trained.best_checkpoint.resolve())


def test_training_goes_on_from_a_run_not_from_a_checkpoint_left_behind(workplace, capsys) -> None:
    words = ("train.checkpoint_every_steps=2", "train.keep_checkpoints=9", "data.num_examples=48", UNTRACKED)
    assert workplace.train("train", *words) == 0
    run = workplace.newest
    assert workplace.type("train", f"run={run.final_checkpoint}") == 0
    capsys.readouterr()
    assert workplace.type("train", f"run={run.checkpoint(2)}") == 2
    assert "training went on to checkpoint-6, and a run goes on from its newest" in capsys.readouterr().err


def test_a_plain_model_is_measured_exported_and_asked(workplace, capsys) -> None:
    model, examples = ASSETS / "tiny_llama", ASSETS / "text.jsonl"
    assert workplace.type("evaluate", f"run={model}", f"--eval-data={examples}", UNTRACKED) == 0
    measured = workplace.newest
    assert load_config(measured.config_file).method.name == "none"
    assert _stage(measured, "evaluate")["num_examples"] == 60
    assert "base_loss" not in _stage(measured, "evaluate")

    assert workplace.train("train", "evaluate", f"data.eval_path={examples}", UNTRACKED) == 0
    base_loss = _stage(workplace.newest, "evaluate")["base_loss"]
    assert _stage(measured, "evaluate")["loss"] == pytest.approx(base_loss, rel=1e-6)

    target = workplace.folder / "shipped"
    assert workplace.type("export", f"run={model}", f"--output-path={target}", "--format", "hf", UNTRACKED) == 0
    assert json.loads((target / "hf" / "parity.json").read_text())
    assert "as it is" in (target / "hf" / "README.md").read_text()
    assert workplace.type("generate", f"run={target / 'hf'}", "--prompt", "x", "--max-length", "3") == 0
    assert "model: hf as it is" in capsys.readouterr().out


def test_an_adapter_made_elsewhere_is_measured_exported_and_asked(workplace, adapter, capsys) -> None:
    examples = ASSETS / "text.jsonl"
    assert workplace.type("evaluate", f"run={adapter}", f"data.eval_path={examples}", UNTRACKED) == 0
    measured = workplace.newest
    config = load_config(measured.config_file)
    assert (config.method.rank, config.method.alpha, config.method.target_modules) == (4, 4.0, ("q_proj",))
    figures = _stage(measured, "evaluate")
    assert figures["loss"] == pytest.approx(_loss_by_peft(adapter, examples), rel=1e-3)
    assert figures["loss"] != pytest.approx(figures["base_loss"], rel=1e-3)

    target = workplace.folder / "shipped"
    words = ["export", f"run={adapter}", f"export.path={target}", "--format", "adapter,hf", UNTRACKED]
    assert workplace.type(*words, f"data.path={ASSETS / 'examples.jsonl'}") == 0
    assert (target / "adapter" / "adapter_model.safetensors").read_bytes() == (
        adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert workplace.type("generate", f"run={adapter}", "--prompt", "x", "--max-length", "3") == 0
    assert f"model: adapter {adapter}" in capsys.readouterr().out
    assert workplace.type("generate", f"run={adapter}", "--prompt", "x", "method=full") == 2
    assert "is an adapter; take method=lora or method=qlora" in capsys.readouterr().err


def test_training_goes_on_from_an_adapter_on_new_data(workplace, adapter, capsys) -> None:
    assert workplace.train("train", f"method.adapter={adapter}", "model.name=mine", UNTRACKED) == 0
    first = workplace.newest
    config = load_config(first.config_file)
    assert (config.method.rank, config.method.target_modules, config.model.name) == (4, ("q_proj",), "mine")
    assert Manifest(first.manifest_file).section("adapter")["folder"] == str(adapter)

    words = [*SHORT, f"data.path={ASSETS / 'text.jsonl'}", UNTRACKED, "data.validation_fraction=0.2"]
    assert workplace.type("train", f"method.adapter={first.path.name}", *words) == 0
    second = workplace.newest
    assert load_config(second.config_file).model == load_config(first.config_file).model
    started = MetricsLog(second.metrics_file).losses("train/loss")[0][1]
    assert workplace.type("train", f"model={ASSETS / 'tiny_llama'}", "method.rank=4", *words) == 0
    assert started != pytest.approx(MetricsLog(workplace.newest.metrics_file).losses("train/loss")[0][1], rel=1e-4)
    assert "going on from the adapter" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.rank=8"], "method.rank=8: the adapter has 4; leave it out."),
        (["method=full"], "method.adapter: method=full has no such key"),
        (["model=TINY_GPT2"], "q_proj is no linear layer"),
        (["run=latest"], "there is no run"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(workplace, adapter, capsys, words, message) -> None:
    words = [word.replace("TINY_GPT2", str(ASSETS / "tiny_gpt2")) for word in words]
    status = workplace.type(
        "train", *SHORT, f"data.path={ASSETS / 'examples.jsonl'}", f"method.adapter={adapter}", UNTRACKED, *words
    )
    assert status == 2
    assert message in capsys.readouterr().err


def test_an_adapter_of_another_base_is_refused(workplace, tmp_path, capsys) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    assert workplace.train("train", UNTRACKED) == 0
    run, other = workplace.newest, tmp_path / "other"
    shutil.copytree(ASSETS / "tiny_llama", other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    words = [*SHORT, f"data.path={ASSETS / 'examples.jsonl'}", UNTRACKED]
    assert workplace.type("train", f"method.adapter={run.path}", f"model={other}", *words) == 2
    assert "was trained on tiny-llama (sha256" in capsys.readouterr().err


def test_a_resolved_config_runs_again_to_the_same_weights(workplace) -> None:
    assert workplace.train("train", "generate.prompt=${oc.env:HOME} It's, (x", UNTRACKED) == 0
    first = workplace.newest
    assert workplace.type("train", "--config-name", str(first.config_file)) == 0
    second = workplace.newest
    assert second.path != first.path
    assert second.config_file.read_text() == first.config_file.read_text()
    name = "adapter_model.safetensors"
    assert (second.final_checkpoint / name).read_bytes() == (first.final_checkpoint / name).read_bytes()
    words = ["train", "--config-dir", str(first.path), "--config-name", "config", "seed=5"]
    assert workplace.type(*words) == 0
    assert load_config(workplace.newest.config_file).seed == 5
    assert len(list_runs(workplace.folder / "runs")) == 3


def _loss_by_peft(adapter: Path, examples: Path) -> float:
    """Mean loss per supervised token of each row's whole text, by plain PEFT in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny_llama")
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny_llama", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    total, count = 0.0, 0
    for line in examples.read_text().splitlines():
        row = json.loads(line)
        ids = [*tokenizer(row.get("text") or row.get("content"))["input_ids"], tokenizer.eos_token_id]
        tensor = torch.tensor([ids])
        with torch.no_grad():
            total += float(model(input_ids=tensor, labels=tensor).loss) * (len(ids) - 1)
        count += len(ids) - 1
    return total / count
