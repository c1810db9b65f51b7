"""Exports from the command line: what a person types, what they get, and what stops them."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteConfig

from llmtune.export import registered_model
from llmtune.runs.lookup import list_runs
from tiny_shapes import SHAPE

QUICK_TRAINING = ("train.max_steps=2", "evaluate.num_samples=0", "data.num_test_examples=4")


def written(folder: Path, prompt: str, tokens: int) -> str:
    """What an export's own `run.py` writes."""
    command = [sys.executable, folder / "run.py", prompt, "--max-new-tokens", str(tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_the_flags_of_other_tools_export_and_what_comes_out_writes_what_generate_writes(workplace, capsys, name):
    assert workplace.train("train", "tracking=none", *QUICK_TRAINING) == 0
    checkpoint = workplace.newest.checkpoints / "checkpoint-final"
    status = workplace.type(
        *("export", "--model-path", str(checkpoint), "--output-path", "./exported_model", "--format", name)
    )
    assert status == 0
    folder = workplace.folder / "exported_model" / name
    figures = json.loads((folder / "parity.json").read_text())["figures"]
    assert figures["logit_difference"]["value"] <= 1e-4 and figures["greedy_parted"]["value"] == 0
    said = capsys.readouterr().out
    assert f"exported {name}: {folder}" in said
    assert ("torch calls TorchScript deprecated" in said) == (name == "torchscript")
    prompt = "def add(a, b):"
    words = ("generate", f"run={checkpoint}", "--prompt", prompt, "--max-length", "12", "--temperature", "0")
    assert workplace.type(*words) == 0
    text = written(folder, prompt, 12)
    assert text and text in capsys.readouterr().out
    assert list((workplace.folder / "exported_model").iterdir()) == [folder], "nothing is left beside it"
    assert not list(workplace.newest.path.rglob(".asked*"))


def test_a_format_that_cannot_hold_the_model_is_refused_before_training(workplace, capsys):
    folder = workplace.folder / "granite"
    AutoModelForCausalLM.from_config(GraniteConfig(**{**SHAPE, "vocab_size": 512})).save_pretrained(folder)
    AutoTokenizer.from_pretrained(Path(__file__).parent.parent / "assets" / "tiny_llama").save_pretrained(folder)
    status = workplace.train("tracking=none", "export.formats=[hf,onnx,torch_export,gguf]", model=str(folder))
    assert status == 2
    said = capsys.readouterr().err
    for name in ("onnx", "torch_export", "gguf"):
        assert re.search(rf"export\.formats: {name} .*granite", said)
    assert not workplace.newest.checkpoints.exists() and not workplace.manifest.stage("train")


def test_an_export_that_was_removed_is_made_again_and_one_that_is_there_is_not(workplace, capsys):
    assert workplace.train("tracking=none", *QUICK_TRAINING, "export.formats=[adapter]") == 0
    run, made = workplace.newest, workplace.newest.exports / "adapter"
    before = (made / "adapter_model.safetensors").stat().st_mtime_ns
    assert workplace.type("export", f"run={run.path}") == 0
    assert "export: finished earlier" in capsys.readouterr().out
    assert (made / "adapter_model.safetensors").stat().st_mtime_ns == before
    shutil.rmtree(run.exports)
    assert workplace.type("export", f"run={run.path}") == 0
    assert (made / "parity.json").exists()
    assert len(list_runs(workplace.folder / "runs")) == 1


def test_a_finished_run_is_registered_without_exporting_anew(workplace, capsys, monkeypatch):
    assert workplace.train(*QUICK_TRAINING, "export.formats=[hf]") == 0
    run = workplace.newest
    store = f"sqlite:///{workplace.folder / 'mlflow.db'}"
    monkeypatch.setattr(registered_model, "_SPARE_BYTES", 0)
    command = ("export", f"run={run.path}", "export.formats=[hf]", "export.register=tuned")
    assert workplace.type(*command) == 0
    said = capsys.readouterr().out
    assert f"exported hf: finished earlier, {run.exports / 'hf'}" in said
    assert 'registered: tuned version 1; mlflow.pyfunc.load_model("models:/tuned@proven")' in said
    assert "in the registry: http://127.0.0.1:" in said and "/#/models/tuned/versions/1" in said
    version = mlflow.MlflowClient(store, registry_uri=store).get_model_version_by_alias("tuned", "proven")
    assert version.version in (1, "1") and version.tags["method"] == "lora"
    assert workplace.type(*command) == 0
    assert "registered earlier: tuned version 1" in capsys.readouterr().out


def test_a_registration_that_cannot_work_is_refused_before_training(workplace, capsys):
    assert workplace.train("tracking=none", "export.register=tuned") == 2
    assert "export.register: needs MLflow" in capsys.readouterr().err
    assert workplace.train("export.register=tuned", "export.formats=[adapter]") == 2
    assert "registers the hf format; add hf to export.formats" in capsys.readouterr().err
    assert not list_runs(workplace.folder / "runs")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["hf", "onnx", "torchscript", "torch_export", "gguf", "onnx_int4"])
def test_a_kill_leaves_the_old_export_or_none(workplace, name):
    """Killed at random moments: the target is whole or not there, nothing runs on, and the next try finishes."""
    assert workplace.train("train", "tracking=none", *QUICK_TRAINING) == 0
    target = workplace.folder / "out" / name
    command = [
        *(sys.executable, "-m", "llmtune", "export", f"run={workplace.newest.path}", f"export.formats=[{name}]"),
        *(f"export.path={target.parent}", "export.overwrite=true", f"cache_dir={workplace.folder / 'cache'}"),
    ]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole, seconds = contents(target), time.monotonic() - started
    draw = random.Random(1)
    for number in range(6):
        if number == 3:
            shutil.rmtree(target)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.3, 0.95) * seconds)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        psutil.wait_procs(children, timeout=10)
        assert not [child for child in children if child.is_running()], "the process that asks ends with its parent"
        if target.exists():
            assert contents(target).keys() == whole.keys()
    subprocess.run(command, check=True, capture_output=True)
    assert contents(target).keys() == whole.keys()
    assert [folder.name for folder in target.parent.iterdir()] == [name]


def contents(folder: Path) -> dict[str, int]:
    """Files and their sizes."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
