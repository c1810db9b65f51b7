import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune.export.parity import Bounds, Probe, compare, parity_prompts, probe

pytestmark = pytest.mark.fast
BOUNDS = Bounds(logits=0.01, largest_kl=0.05)


class Lengths:
    """A split of which only the lengths matter."""

    def __init__(self, *lengths: int) -> None:
        self.num_tokens = np.array(lengths)

    def input_ids(self, index: int) -> np.ndarray:
        return np.full(self.num_tokens[index], index)


def probe_of(logits: list[float], tokens: list[int], gaps: list[float]) -> Probe:
    row = torch.tensor([logits])
    return Probe([row], row, torch.tensor([tokens]), torch.tensor([gaps]))


def figures(trained: Probe, exported: Probe, bounds: Bounds = BOUNDS) -> dict:
    return {figure.name: figure for figure in compare(trained, exported, bounds)}


def test_figures_by_hand():
    trained = probe_of([0.0, math.log(3)], [1], [1.0])  # probabilities 1/4, 3/4
    exported = probe_of([0.0, 0.0], [1], [1.0])  # 1/2, 1/2
    found = figures(trained, exported)
    assert found["logit_difference"].value == pytest.approx(1.0)
    expected_kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert found["kl_mean"].value == pytest.approx(expected_kl)
    assert found["kl_largest"].value == pytest.approx(expected_kl)
    assert found["top1_agreement"].value == 0.0
    assert not found["logit_difference"].passed and not found["kl_largest"].passed


def test_equal_models_pass():
    one = probe_of([1.0, 2.0], [1, 0], [1.0, 0.5])
    assert all(figure.passed for figure in compare(one, one, BOUNDS))
    assert figures(one, one)["top1_agreement"].value == 1.0


@pytest.mark.parametrize(("gap", "parted"), [(0.019, 0), (0.021, 1)])
def test_greedy_texts_may_part_at_a_tie_alone(gap, parted):
    # The largest logit is 2 and the bound 0.01 of it, so that a lead up to 0.02 is a tie.
    trained = probe_of([1.0, 2.0], [3, 4, 5], [1.0, gap, 1.0])
    exported = probe_of([1.0, 2.0], [3, 6, 7], [1.0, gap, 1.0])
    assert figures(trained, exported)["greedy_parted"].value == parted


def test_without_a_bound_on_logits_greedy_text_is_only_reported():
    trained = probe_of([1.0, 2.0], [3], [1.0])
    exported = probe_of([1.0, 2.0], [4], [1.0])
    assert figures(trained, exported, Bounds(logits=None, mean_kl=0.1))["greedy_parted"].passed


def test_a_nan_in_the_export_never_passes():
    found = figures(probe_of([1.0, 2.0], [1], [1.0]), probe_of([math.nan, 2.0], [1], [1.0]))
    assert not found["logit_difference"].passed and not found["kl_largest"].passed


def test_prompts_run_from_the_shortest_to_the_longest_within_the_models_positions():
    table = Lengths(50, 3, 300, 20, 7)
    assert [len(prompt) for prompt in parity_prompts(table, None)] == [3, 7, 50, 128]
    assert [len(prompt) for prompt in parity_prompts(table, 64)] == [3, 7, 32, 32]
    assert [len(prompt) for prompt in parity_prompts(Lengths(9), None)] == [9]


def test_a_probe_is_what_transformers_says(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16, 17, 18]]
    found = probe(model, prompts, tokenizer)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0]
            start = model(torch.tensor([prompt[: len(prompt) // 2]])).logits[0, -1]
        assert torch.allclose(found.logits[row], expected, atol=1e-5)
        assert torch.allclose(found.padded_logits[row], start, atol=1e-4)
        assert found.greedy_tokens[row, 0] == start.argmax()
    assert found.greedy_tokens.shape == found.greedy_gaps.shape == (2, 32)
