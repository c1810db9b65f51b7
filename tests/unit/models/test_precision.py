"""Precision and device: what is chosen, what is refused."""

import pytest
import torch

from llmtune.errors import ConfigError
from llmtune.models import precision
from llmtune.models.precision import choose_device, choose_precision

CPU = torch.device("cpu")


@pytest.mark.fast
@pytest.mark.parametrize(("native", "name"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_cpu(monkeypatch, native, name):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: native)
    assert choose_precision("auto", CPU).name == name


@pytest.mark.fast
@pytest.mark.parametrize(("capability", "name"), [((8, 0), "bf16"), ((7, 5), "fp16")])
def test_auto_on_gpu(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    chosen = choose_precision("auto", torch.device("cuda", 0))
    assert chosen.name == name and "Card" in chosen.reason
    assert chosen.needs_loss_scaling == (name == "fp16")


@pytest.mark.fast
def test_refusals(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    with pytest.raises(
        ConfigError, match=r"train.precision=bf16: this CPU doesn't compute bf16 natively; set auto, fp"
    ):
        choose_precision("bf16", CPU)
    with pytest.raises(ConfigError, match=r"train.precision=fp16 needs a GPU"):
        choose_precision("fp16", CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="hardware=single_gpu needs a GPU"):
        choose_device("single_gpu")
    assert choose_device("auto") == choose_device("cpu") == CPU


@pytest.mark.fast
def test_process_without_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("ddp") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU: 2 visible"):
        choose_device("ddp")


@pytest.mark.fast
def test_autocast_type():
    row = torch.ones(2, 2)
    with choose_precision("fp32", CPU).autocast():
        assert (row @ row).dtype == torch.float32
    with precision.Precision("bf16", "cpu", "test").autocast():
        assert (row @ row).dtype == torch.bfloat16
