"""The same on a GPU: methods, precisions, packed rows through torch's kernel, and resume."""

import json

import pytest
import torch

from llmtune.models.attention import VARLEN_KERNEL
from llmtune.runs.metrics_log import MetricsLog

pytestmark = pytest.mark.gpu

QUICK = ["hardware=single_gpu", "tracking.backend=none", "evaluate.num_samples=1", "export.max_loss_rise=1.0"]


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_every_method_learns_and_exports(workplace, method, model) -> None:
    rate = "train.learning_rate=1e-3" if method == "full" else "train.learning_rate=5e-3"
    assert workplace.train(f"method={method}", rate, "train.num_epochs=3", *QUICK, model=model) == 0
    evaluated, choices = workplace.manifest.stage("evaluate"), workplace.manifest.section("choices")
    assert evaluated["loss"] < evaluated["base_loss"] - 0.05
    assert choices["device"].startswith("cuda") and choices["packed"]


def test_bf16_takes_torchs_kernel_for_packed_rows(workplace) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a GPU with native bf16")
    assert workplace.train("train", "method=lora", *QUICK) == 0
    choices = workplace.manifest.section("choices")
    assert (choices["precision"], choices["attention"]) == ("bf16", VARLEN_KERNEL)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_weights_that_train_in_bf16_learn_too(workplace, method) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a GPU with native bf16")
    rate = "train.learning_rate=1e-3" if method == "full" else "train.learning_rate=5e-3"
    words = [f"method={method}", "train.master_dtype=bf16", rate, "train.num_epochs=3"]
    assert workplace.train("train", "evaluate", *words, *QUICK) == 0
    evaluated, choices = workplace.manifest.stage("evaluate"), workplace.manifest.section("choices")
    assert evaluated["loss"] < evaluated["base_loss"] - 0.05
    assert (choices["precision"], choices["attention"]) == ("bf16", VARLEN_KERNEL)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_other_precisions_learn_the_same(workplace, precision) -> None:
    words = ["train", "method=lora", "method.dropout=0.0", "train.learning_rate=5e-3", *QUICK]
    assert workplace.train(*words, "train.precision=bf16") == 0
    expected = MetricsLog(workplace.newest.metrics_file).losses("train/loss")[-1][1]
    assert workplace.train(*words, f"train.precision={precision}") == 0
    losses = MetricsLog(workplace.newest.metrics_file).losses("train/loss")
    assert losses[-1][1] == pytest.approx(expected, rel=0.02)


def test_padded_and_packed_steps_have_the_same_loss(workplace) -> None:
    words = ["train", "method=lora", "method.dropout=0.0", "train.precision=fp32", *QUICK]
    curves = []
    for packing in ("true", "false"):
        assert workplace.train(*words, f"train.packing={packing}") == 0
        curves.append([loss for _, loss in MetricsLog(workplace.newest.metrics_file).losses("train/loss")])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_resume_is_exact_with_deterministic_kernels(workplace, method, monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    words = ["train", f"method={method}", "train.deterministic=true", "train.checkpoint_every_steps=2", *QUICK]
    words.append("train.keep_checkpoints=10")
    assert workplace.train(*words) == 0
    straight = workplace.newest
    digests = _tensor_files(straight)
    _forget_after(straight, step=4)
    assert workplace.type("train", f"run={straight.path}") == 0
    assert _tensor_files(straight) == digests


def _tensor_files(folder) -> dict[str, str]:
    index = json.loads((folder.final_checkpoint / "checkpoint.json").read_text())
    return {name: digest for name, digest in index["files"].items() if name.endswith(".safetensors")}


def _forget_after(folder, step: int) -> None:
    """Make the run look as if it was killed after `step`."""
    import shutil

    for checkpoint in folder.checkpoints.iterdir():
        if checkpoint.is_symlink():
            checkpoint.unlink()
        elif int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    manifest = json.loads(folder.manifest_file.read_text())
    del manifest["stages"]["train"]
    folder.manifest_file.write_text(json.dumps(manifest))
