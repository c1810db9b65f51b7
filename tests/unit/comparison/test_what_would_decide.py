"""What would decide, in words: seeds, test examples, or groups of them that don't depend on each other."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up import losses, result

from llmtune.comparison.compare import compare
from llmtune.config.compare import CompareConfig

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("clusters", "told"),
    [(8, "times as many independent groups of test examples"), (16, "times the test examples")],
)
def test_examples_of_one_group_are_not_counted_one_by_one(clusters: int, told: str) -> None:
    """Seeds agree and examples don't, so that only further examples help."""
    groups = np.array([f"g{place % clusters}" for place in range(16)])
    apart = np.tile([-9.0, 3.0, 5.0, 4.0, -2.0, 6.0, -3.0, 4.0], 2)
    shifts = {"base": 30.0, "full": 20.0, "lora": 20.0 + apart}
    of = {name: losses(np.full(16, 0.0) + shift, clusters=groups) for name, shift in shifts.items()}
    runs = [result(of[name], name, seed, base=of["base"]) for name in ("full", "lora") for seed in (1, 2, 3)]
    found = compare(runs, CompareConfig(), "x")
    needs = {row.name: row.would_decide or "" for row in found.rows}
    assert needs["lora"].endswith(f" {told}")
    assert f"{told} may decide it." in found.verdict
