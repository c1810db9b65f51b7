"""Losses and gradients of a block of logits, worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from llmtune.models.cross_entropy import cross_entropy_with_gradient

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_and_gradients_by_hand(dtype):
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, -90.0, -90.0]], dtype=dtype)
    memory = logits.data_ptr()
    losses, gradient = cross_entropy_with_gradient(logits, torch.tensor([3, 2]))
    assert losses.tolist() == pytest.approx([math.log(4), 95 + math.log(2)], rel=1e-6)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.tolist() == [[0.25, 0.25, 0.25, -0.75], [0.5, 0.5, -1.0, pytest.approx(0, abs=1e-40)]]
    assert gradient.dtype == dtype
    assert gradient.data_ptr() == memory, "in the logits' place"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-7), (torch.float64, 1e-15)])
def test_random_logits_far_from_zero(dtype, tolerance):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(7, 1000, generator=generator, dtype=torch.float64) * 20 + 300).to(dtype)
    targets = torch.randint(0, 1000, (7,), generator=generator)
    exact = logits.double().clone().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    (expected_gradient,) = torch.autograd.grad(expected.sum(), exact)
    losses, gradient = cross_entropy_with_gradient(logits, targets)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=tolerance, atol=tolerance)
    assert float((gradient - expected_gradient).norm()) <= 2 * tolerance * float(expected_gradient.norm())


def test_a_sure_position_keeps_its_small_loss():
    logits = torch.tensor([[1000.0, 988.0]])
    losses, _ = cross_entropy_with_gradient(logits, torch.tensor([0]))
    assert float(losses) == pytest.approx(math.log1p(math.exp(-12)), rel=0.02)  # of 1000's steps in float32, 6e-5


def test_a_logit_that_is_no_number_shows():
    losses, gradient = cross_entropy_with_gradient(
        torch.tensor([[0.0, float("nan")], [0.0, 1.0]]), torch.tensor([0, 0])
    )
    assert losses.isnan().tolist() == [True, False]
    assert gradient.isnan().all(1).tolist() == [True, False]
