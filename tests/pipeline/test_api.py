"""The Python interface for real: train, measure, write, save; interrupted, in a thread, in two processes; examples."""

import json
import runpy
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from llmtune import FineTuneConfig, LLMFineTuner
from llmtune.errors import LlmtuneError, RunError
from llmtune.runs.lookup import list_runs
from llmtune.runs.manifest import Manifest
from llmtune.stages import generate
from llmtune.training.callbacks.progress import ProgressCallback

from .conftest import ASSETS

EXAMPLES = ASSETS.parent.parent / "scripts" / "examples"
TINY = ASSETS / "tiny_llama"


@pytest.fixture
def config(workplace):
    """Makes a config for short trainings on the tiny model."""

    def make(**given) -> FineTuneConfig:
        short = [
            "tracking=none",
            "data.num_examples=32",
            "evaluate.num_samples=1",
            "evaluate.sample_max_new_tokens=4",
            "evaluate.num_general_examples=0",
        ]
        more = [*short, f"cache_dir={workplace.folder / 'cache'}", *given.pop("overrides", [])]
        return FineTuneConfig(
            **{"model_name": str(TINY), "num_epochs": 1, "max_seq_length": 64, **given}, overrides=more
        )

    return make


@pytest.fixture
def file(workplace) -> Path:
    """The examples, under a name with special characters."""
    return Path(shutil.copy(ASSETS / "examples.jsonl", workplace.folder / "it's = mine (1), [x].jsonl"))


def _stage(folder: Path, name: str) -> dict:
    return Manifest(folder / "manifest.json").stage(name)


def test_from_the_base_model_to_a_saved_adapter(workplace, config, file, capsys, monkeypatch) -> None:
    loads: list[str] = []
    load = generate.Writer.__init__
    monkeypatch.setattr(
        generate.Writer, "__init__", lambda self, made: (loads.append(made.method.name), load(self, made))[0]
    )
    tuner = LLMFineTuner(config(method="lora", lora_r=4))
    before = tuner.generate("It's (a = ", max_length=4, temperature=0)
    assert before.startswith("It's (a = ")
    assert "model: tiny-llama as it is" in capsys.readouterr().out
    base = tuner.evaluate(file)
    assert base["num_examples"] == 200
    assert "base_loss" not in base

    trained = tuner.train(file, ASSETS / "text.jsonl")
    assert trained["steps"] == 4
    assert trained["final_loss"] == _stage(tuner.run_folder, "train")["final_loss"] > 0
    assert trained["best_validation_loss"] > 0
    assert trained["seconds"] > 0
    measured = tuner.evaluate()
    assert measured["num_examples"] == 60
    assert measured["loss"] == _stage(tuner.run_folder, "evaluate")["loss"]
    assert measured["loss"] != measured["base_loss"]
    assert {"perplexity", "tokens_per_second"} <= set(measured)
    assert tuner.evaluate(file)["base_loss"] == pytest.approx(base["loss"])

    texts = tuner.generate("add 1", max_length=4, temperature=0.9, num_samples=3)
    assert [text.startswith("add 1") for text in texts] == [True] * 3
    tuner.generate("add 2", max_length=4)
    assert loads == ["none", "lora"]
    _check_adapter(tuner.save_model(workplace.folder / "my model"), tuner.run_folder)

    first = tuner.run_folder
    tuner.train(file)
    assert tuner.run_folder != first


def _check_adapter(saved: Path, run: Path) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    wanted = load_file(run / "checkpoints" / "checkpoint-best" / "adapter_model.safetensors")
    found = load_file(saved / "adapter_model.safetensors")
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY), saved)
    assert model.peft_config["default"].r == 4
    assert [path.name for path in saved.parent.glob(".*draft")] == []


@pytest.mark.slow
def test_full_saves_the_whole_model_and_export_writes_a_folder_a_format(workplace, config, file) -> None:
    from transformers import AutoModelForCausalLM

    tuner = LLMFineTuner(config(method="full", lora_r=4))
    trained = tuner.train(file)
    assert trained["num_trainable"] == trained["num_parameters"]
    saved = tuner.save_model("saved")
    assert saved == workplace.folder / "saved"
    AutoModelForCausalLM.from_pretrained(saved)
    exported = tuner.export("out = (1)", "hf")
    assert exported == workplace.folder / "out = (1)" / "hf"
    assert json.loads((exported / "parity.json").read_text())
    with pytest.raises(LlmtuneError, match="there is no format gguf"):
        tuner.export("other", "gguf")
    with pytest.raises(LlmtuneError, match="adapter can't be had from method=full"):
        tuner.export("other", "adapter")
    with pytest.raises(LlmtuneError, match="isn't empty"):
        tuner.export("out = (1)", "hf")


@pytest.mark.slow
def test_from_run_takes_what_a_run_reference_takes(workplace, config, file) -> None:
    first = LLMFineTuner(config())
    first.train(file)
    expected = first.generate("add 1", max_length=4, temperature=0)
    for reference in ("latest", first.run_folder.name, first.run_folder / "checkpoints" / "checkpoint-final"):
        again = LLMFineTuner.from_run(reference)
        assert again.run_folder == first.run_folder
        assert again.generate("add 1", max_length=4, temperature=0) == expected
    base = LLMFineTuner.from_run(TINY)
    assert base.evaluate(file)["num_examples"] == 200
    with pytest.raises(RunError, match="tiny_llama is no run"):
        base.run_folder  # noqa: B018
    with pytest.raises(RunError, match="is a model, which evaluate, export and generate take as it is"):
        base.train()


def test_an_interrupted_training_goes_on(config, file, monkeypatch, workplace) -> None:
    step_end = ProgressCallback.on_step_end

    def interrupt(self, parts, state, result):
        step_end(self, parts, state, result)
        if state.global_step == 3:
            raise KeyboardInterrupt

    tuner = LLMFineTuner(config(overrides=["train.checkpoint_every_steps=2"]))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ProgressCallback, "on_step_end", interrupt)
        tuner.train(file)
    (listed,) = list_runs(workplace.folder / "runs")
    assert listed.record.status == "KILLED"
    again = LLMFineTuner.from_run("latest")
    assert again.train()["steps"] == 4
    assert again.run_folder == listed.folder.path


def test_a_mistake_in_the_file_is_an_exception_and_leaves_the_tuner_usable(config, file, tmp_path) -> None:
    tuner = LLMFineTuner(config())
    with pytest.raises(LlmtuneError, match=r"nowhere\.jsonl"):
        tuner.train("nowhere.jsonl")
    with pytest.raises(RunError, match="nothing is trained yet"):
        tuner.save_model(tmp_path / "m")
    assert tuner.train(file)["steps"] == 4


def test_it_works_in_a_thread_beside_a_running_event_loop(config, file) -> None:
    import asyncio

    results: list[object] = []

    def work() -> None:
        tuner = LLMFineTuner(config())
        results.append(tuner.train(file)["steps"])
        results.append(tuner.generate("add 1", max_length=2))

    async def beside() -> None:
        assert LLMFineTuner.from_run("latest").evaluate()["loss"] is not None

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0] == 4
    assert str(results[1]).startswith("add 1")
    asyncio.run(beside())


@pytest.mark.slow
def test_two_processes_train_and_tell_their_failure(config, file) -> None:
    two = ["hardware=ddp", "hardware.num_processes=2"]
    tuner = LLMFineTuner(config(overrides=two))
    assert tuner.train(file)["steps"] == 2
    assert tuner.generate("add 1", max_length=2).startswith("add 1")
    with pytest.raises(LlmtuneError, match=r"runs/.*nowhere\.jsonl"):
        LLMFineTuner(config(overrides=two)).train("nowhere.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("python_api", ["trained 36 steps", "test loss", "it writes: '7 feet in inches:", "saved: "]),
        ("compare_methods", ["base loss", "full ", "lora ", "qlora "]),
        ("continue_from_adapter", ["of the base model", "of the adapter for feet", "that went on with yards: "]),
    ],
)
def test_the_examples_run(workplace, monkeypatch, capsys, name, shown) -> None:
    monkeypatch.setenv("LLMTUNE_CACHE", str(workplace.folder / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(workplace.folder))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--model", str(TINY)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out.splitlines()[-4:]
    for text in shown:
        assert any(text in line for line in said), text
