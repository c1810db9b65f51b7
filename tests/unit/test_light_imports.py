"""The command line answers before anything heavy is imported."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.fast

HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "mlflow", "optuna", "matplotlib"}
LIGHT_MODULES = ("llmtune", "llmtune.config.run", "llmtune.cli", "llmtune.api", "llmtune.commands.runs")


def heavy_after(statement: str) -> set[str]:
    """The heavy libraries that a fresh interpreter holds after `statement`."""
    report = f"{statement}; import json, sys; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=60)
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_nothing_heavy_is_imported(module: str) -> None:
    assert heavy_after(f"import {module}") == set()


def test_a_heavy_import_is_seen() -> None:
    assert heavy_after("import matplotlib") == {"matplotlib"}
