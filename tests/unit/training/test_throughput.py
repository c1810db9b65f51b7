"""Speed without the first steps, and peak memory."""

import pytest
import torch

from llmtune.training.throughput import Throughput, peak_memory_gib

pytestmark = pytest.mark.fast


def test_the_first_two_steps_are_left_out():
    throughput = Throughput(num_processes=2)
    assert throughput.add(100, 50.0) is None
    assert throughput.add(100, 50.0) is None
    assert throughput.tokens_per_second_per_device is None
    assert throughput.add(400, 2.0) == 100.0
    assert throughput.add(600, 1.0) == 300.0
    assert throughput.tokens_per_second_per_device == pytest.approx(1000 / 3 / 2)


def test_peak_memory_counts_what_was_freed():
    before = peak_memory_gib(torch.device("cpu"))
    held = torch.ones(int((before + 0.05) * 2**30) // 4)
    del held
    assert peak_memory_gib(torch.device("cpu")) > before + 0.04
