"""The memory estimate against sums worked out by hand."""

from dataclasses import replace

import pytest
import torch

from llmtune.training.memory import OPTIMIZER_BYTES, MemoryShape, device_memory_gib, estimate_memory

pytestmark = pytest.mark.fast

SHAPE = MemoryShape(
    num_parameters=1000, num_trainable=100, frozen_bytes=2, optimizer_bytes=OPTIMIZER_BYTES["adamw"], compute_bytes=2,
    hidden_size=8, num_layers=3, vocab_size=50,
)  # fmt: skip


def test_weights_gradients_activations_and_logits_add_up():
    weights = 900 * 2 + 100 * (4 + 4 + 8)
    activations = 10 * 8 * 34 * 3
    logits = 10 * 50 * 8
    assert estimate_memory(SHAPE, 10) == pytest.approx((weights + activations + logits) / 2**30)


def test_activation_checkpointing_keeps_one_layer_and_the_inputs():
    saved = estimate_memory(SHAPE, 10) - estimate_memory(SHAPE, 10, activation_checkpointing=True)
    assert saved == pytest.approx((10 * 8 * 34 * 2 - 10 * 8 * 2 * 3) / 2**30)


def test_fp32_doubles_the_activations():
    more = estimate_memory(replace(SHAPE, compute_bytes=4), 10) - estimate_memory(SHAPE, 10)
    assert more == pytest.approx(10 * 8 * 34 * 3 / 2**30)


def test_the_machine_has_memory():
    assert device_memory_gib(torch.device("cpu")) > 0.5
