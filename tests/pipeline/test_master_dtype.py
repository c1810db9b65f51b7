"""A run whose weights train in bf16: through all stages, warned once, and only where the products are bf16 too."""

import pytest
import torch
from safetensors.torch import load_file

from llmtune.models import precision

from .conftest import ASSETS

BF16 = "train.master_dtype=bf16"
UNTRACKED = "tracking.backend=none"
WARNED = "train.master_dtype=bf16: is for measuring beside tools that train in bf16"


def _has_bf16(monkeypatch, answer: bool) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: answer)


def _told(capsys) -> str:
    read = capsys.readouterr()
    return " ".join((read.out + read.err).split())


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_it_trains_evaluates_exports_and_is_gone_on_with(workplace, method, monkeypatch, capsys) -> None:
    _has_bf16(monkeypatch, True)
    learning_rate = "train.learning_rate=1e-3" if method == "full" else "train.learning_rate=5e-3"
    loose = "export.max_loss_rise=1.0"  # random weights lose much in 4 bits
    assert workplace.train(f"method={method}", BF16, UNTRACKED, learning_rate, loose, "train.num_epochs=3") == 0
    assert _told(capsys).count(WARNED) == 1
    trained, evaluated = workplace.newest, workplace.manifest.stage("evaluate")
    assert evaluated["loss"] < evaluated["base_loss"] - 0.05
    for name in ("model.safetensors" if method == "full" else "adapter_model.safetensors", "optimizer.safetensors"):
        tensors = load_file(trained.final_checkpoint / name)
        kept = {key: tensor.dtype for key, tensor in tensors.items() if not key.endswith("/step")}
        assert set(kept.values()) == {torch.bfloat16}
    assert (trained.exports / "hf" / "parity.json").exists()

    rows = f"data.eval_path={ASSETS / 'examples.jsonl'}"
    assert workplace.type("evaluate", f"run={trained.path}", rows, "train.precision=fp32", "evaluate.base=false") == 0
    assert workplace.newest.path != trained.path
    assert workplace.manifest.stage("evaluate")["computed_with"]["precision"] == "fp32"

    capsys.readouterr()
    allow = "resume_allow=[train.num_epochs]"
    assert workplace.type("train", f"run={trained.path}", "train.master_dtype=fp32", "train.num_epochs=4", allow) == 2
    assert "train.master_dtype=fp32: the run began with bf16; leave it as it was, or start" in _told(capsys)
    assert workplace.type("train", f"run={trained.path}", "train.num_epochs=4", allow) == 0
    assert _told(capsys).count(WARNED) == 1


def test_without_it_nothing_is_warned_of(workplace, monkeypatch, capsys) -> None:
    _has_bf16(monkeypatch, True)
    assert workplace.train("train", UNTRACKED) == 0
    assert "master_dtype" not in _told(capsys)
    tensors = load_file(workplace.newest.final_checkpoint / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_it_is_refused_where_the_products_come_out_as_another_type(workplace, monkeypatch, capsys) -> None:
    _has_bf16(monkeypatch, False)
    assert workplace.train("train", BF16, UNTRACKED) == 2
    message = "train.master_dtype=bf16: needs bf16 products too, and train.precision=auto is fp32 here (this CPU has no"
    assert message in _told(capsys)
    assert not workplace.newest.checkpoints.exists()


def test_it_is_refused_beside_other_products_before_a_run_is_made(workplace, capsys) -> None:
    assert workplace.train("train", BF16, "train.precision=fp32", "train.max_steps=2", "train.warmup_steps=2") == 2
    told = _told(capsys)
    assert "train.master_dtype=bf16: needs bf16 products too, and train.precision is fp32" in told
    assert "train.warmup_steps=2: must be below" in told, "all problems at once"
    assert not (workplace.folder / "runs").exists()
