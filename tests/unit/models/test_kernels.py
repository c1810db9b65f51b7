"""Which pieces of a model are computed by kernels, as far as it needs no GPU."""

import sys
from types import SimpleNamespace

import pytest
import torch

from llmtune.models.fast import kernels

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("error", [RuntimeError("no compiler\nat all"), OSError("Python.h"), KeyError()])
def test_where_kernels_cant_be_made_torchs_functions_serve_and_it_is_told(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise error

    made = SimpleNamespace(**dict.fromkeys(vars(kernels.PLAIN), broken))
    monkeypatch.setitem(sys.modules, "llmtune.models.fast.gpu_kernels", made)
    monkeypatch.setattr(torch, "ones", lambda *shape, device, of=torch.ones: of(*shape))
    assert kernels._on_gpu.__wrapped__() is kernels.PLAIN
    assert "Triton's kernels can't be made here" in capsys.readouterr().out


def test_a_cpu_takes_torchs_functions() -> None:
    assert kernels.kernels_for(torch.device("cpu"), torch.bfloat16) is kernels.PLAIN
