"""The adapters' dropout: the right share, the right scale, the right gradient, the same for the same seed."""

import pytest
import torch
from torch import nn

from llmtune.config.method import LoraConfig
from llmtune.methods.dropout import AdapterDropout

pytestmark = pytest.mark.fast


def dropped(p: float, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return AdapterDropout(p).train()(x)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_the_share_and_the_scale_are_those_asked_for(p) -> None:
    out = dropped(p, torch.ones(1000, 1000))
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.002)
    assert out.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
    assert out.mean().item() == pytest.approx(1.0, abs=0.004)


def test_the_gradient_passes_where_the_input_did() -> None:
    x = torch.ones(64, 64, requires_grad=True)
    out = dropped(0.3, x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


def test_torchs_seed_decides_and_moves_on() -> None:
    x = torch.ones(4096)
    assert torch.equal(dropped(0.1, x, seed=1), dropped(0.1, x, seed=1))
    assert not torch.equal(dropped(0.1, x, seed=1), dropped(0.1, x, seed=2))
    torch.manual_seed(1)
    module = AdapterDropout(0.1).train()
    assert not torch.equal(module(x), module(x))


@pytest.mark.parametrize("module", [AdapterDropout(0.5).eval(), AdapterDropout(0.0).train()])
def test_nothing_is_dropped_in_evaluation_or_at_zero(module) -> None:
    x = torch.randn(8)
    assert module(x) is x


def test_the_type_is_kept() -> None:
    assert dropped(0.1, torch.ones(8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_adapters_have_it(tiny_llama) -> None:
    from pathlib import Path

    from llmtune.config.model import ModelConfig
    from llmtune.methods.registry import make_method
    from llmtune.models.load import LoadSettings
    from llmtune.models.source import locate_model

    source = locate_model(ModelConfig(name="tiny", source="folder", path=str(tiny_llama)), Path("unused"))
    method = make_method(LoraConfig(dropout=0.2))
    how = LoadSettings(compute_dtype=torch.float32, device=torch.device("cpu"))
    model = method.make_trainable(method.load(source, how), seed=1)
    found = [module for module in model.modules() if isinstance(module, AdapterDropout)]
    assert len(found) == 14
    assert {module.p for module in found} == {0.2}
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
