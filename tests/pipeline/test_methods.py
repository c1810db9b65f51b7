"""Every method goes through all stages on both shapes of model, and what it leaves behind is true."""

import json

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune.runs.metrics_log import MetricsLog
from llmtune.runs.status import RunStatusFile


@pytest.mark.parametrize("model", ["tiny_llama", pytest.param("tiny_gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_trains_evaluates_exports_reloads_and_generates(workplace, method, model, capsys) -> None:
    learning_rate = "train.learning_rate=1e-3" if method == "full" else "train.learning_rate=5e-3"
    loose = "export.max_loss_rise=1.0"  # random weights lose much in 4 bits; the bound itself is tested beside export
    assert workplace.train(f"method={method}", learning_rate, loose, "train.num_epochs=3", model=model) == 0
    manifest, folder = workplace.manifest, workplace.newest

    evaluated, trained = manifest.stage("evaluate"), manifest.stage("train")
    assert evaluated["loss"] < evaluated["base_loss"] - 0.05
    assert evaluated["perplexity"] == pytest.approx(torch.tensor(evaluated["loss"]).exp().item(), rel=1e-5)
    assert (trained["num_trainable"] == trained["num_parameters"]) == (method == "full")
    losses = MetricsLog(folder.metrics_file).losses("train/loss")
    assert [step for step, _ in losses] == list(range(1, trained["steps"] + 1))

    hf = folder.exports / "hf"
    reloaded = AutoModelForCausalLM.from_pretrained(hf)
    tokenizer = AutoTokenizer.from_pretrained(hf)
    prompt = tokenizer("add 5 and 13:", return_tensors="pt")
    assert reloaded.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    assert (folder.exports / "adapter").exists() == (method != "full")
    assert json.loads((hf / "parity.json").read_text())["figures"]["logit_difference"]["passed"]

    capsys.readouterr()
    assert (
        workplace.type("generate", f"run={folder.path}", "generate.prompt=add 5 and 13:", "generate.temperature=0") == 0
    )
    assert "add 5 and 13:" in capsys.readouterr().out


def test_the_record_is_whole(workplace) -> None:
    assert workplace.train("method=lora", "seed=3") == 0
    folder, manifest = workplace.newest, workplace.manifest
    config = yaml.safe_load(folder.config_file.read_text())
    assert (config["seed"], config["method"]["name"]) == (3, "lora")
    assert set(manifest.section("environment")) >= {"python", "packages", "git_commit"}
    assert set(manifest.section("model")) >= {"location", "revision", "weights_digest", "tokenizer_digest", "licence"}
    assert manifest.section("data")["sources"][0]["rows"] == 200
    assert manifest.section("choices")["attention"] == "llmtune_varlen"
    weights = load_file(folder.final_checkpoint / "adapter_model.safetensors")
    assert weights and all("lora_" in name for name in weights)
    assert list(manifest.stage("train")["weights_sha256"]) == ["adapter_model.safetensors"]

    record = RunStatusFile(folder.status_file).read()
    assert record is not None and record.status == "FINISHED" and record.mlflow_run_id
    client = MlflowClient(f"sqlite:///{workplace.folder / 'mlflow.db'}")
    tracked = client.get_run(record.mlflow_run_id)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["method.rank"] == "16"
    assert {"method": "lora", "data": "files"}.items() <= tracked.data.tags.items()
    assert {"train/loss", "evaluate/loss", "evaluate/base_loss", "evaluate/validation_loss"} <= set(
        tracked.data.metrics
    )
    assert tracked.data.metrics["evaluate/loss"] == pytest.approx(manifest.stage("evaluate")["loss"])
    artifacts = {item.path for item in client.list_artifacts(record.mlflow_run_id)}
    assert {"config.yaml", "plots", "adapter", "samples.json"} <= artifacts
    assert {entry.dataset.name for entry in tracked.inputs.dataset_inputs} == {
        "files-train",
        "files-validation",
        "files-test",
    }


def test_no_text_is_kept_where_it_may_not_be(workplace) -> None:
    assert (
        workplace.train("method=lora", "tracking.log_text=false", "tracking.backend=none", "export.formats=[adapter]")
        == 0
    )
    folder = workplace.newest
    assert not folder.samples_file.exists()
    files = [file for file in folder.path.rglob("*") if file.is_file() and "tokenizer" not in file.name]
    assert not [file for file in files if b"add 5 and 13" in file.read_bytes()]


def test_two_runs_of_one_seed_are_the_same_bits(workplace) -> None:
    for _ in range(2):
        assert workplace.train("train", "method=lora", "tracking.backend=none") == 0
    first, second = sorted((workplace.folder / "runs").iterdir())
    digests = [(run / "checkpoints" / "checkpoint-final" / "checkpoint.json").read_text() for run in (first, second)]
    assert (
        json.loads(digests[0])["files"]["adapter_model.safetensors"]
        == (json.loads(digests[1])["files"]["adapter_model.safetensors"])
    )


def test_another_seed_is_another_run(workplace) -> None:
    for seed in (1, 2):
        assert workplace.train("train", "method=lora", "tracking.backend=none", f"seed={seed}") == 0
    losses = [MetricsLog(run / "metrics.jsonl").losses("train/loss") for run in (workplace.folder / "runs").iterdir()]
    assert losses[0] != losses[1]
