"""Runs that were never made: results with losses from given numbers, as a comparison reads them of real records."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.comparison.results import ExampleLosses, RunCost, RunResult
from llmtune.config.validate import flatten, to_plain, to_run_config
from llmtune.runs.layout import RunFolder

NUM_EXAMPLES = 120
COSTS = {
    "full": RunCost(num_trainable=1000, num_parameters=1000, peak_memory_gib=2.0, train_seconds=100.0),
    "lora": RunCost(num_trainable=36, num_parameters=1036, peak_memory_gib=1.8, train_seconds=101.0),
    "qlora": RunCost(num_trainable=36, num_parameters=1036, peak_memory_gib=1.0, train_seconds=150.0),
}


@lru_cache
def _defaults(method: str) -> Mapping[str, Any]:
    plain = {
        "model": {"name": "tiny", "source": "embedded"},
        "method": {"name": method},
        "data": {"source": "files", "path": "/data/train.jsonl"},
        "train": {"learning_rate": 2e-5 if method == "full" else 2e-4},
    }
    return flatten(to_plain(to_run_config(plain)))


def config(method: str = "lora", changes: Mapping[str, Any] | None = None, seed: int = 1) -> dict[str, Any]:
    """A flat config as a run folder has it, with some keys changed."""
    return {**_defaults(method), "seed": seed, **(changes or {})}


def losses(sums: Sequence[float] | np.ndarray, **others: Any) -> ExampleLosses:
    """Losses of examples e000, e001, ...: 10 tokens of 40 bytes each, a cluster of its own, unless told otherwise."""
    sums = np.asarray(sums, np.float64)
    ids = tuple(f"e{index:03d}" for index in range(len(sums)))
    standard = {
        "example_ids": ids,
        "clusters": np.array(others.get("example_ids", ids)),
        "num_tokens": np.full(len(sums), 10),
        "num_bytes": np.full(len(sums), 40),
    }
    return ExampleLosses(loss_sums=sums, **{**standard, **others})


def result(tuned: ExampleLosses, method: str = "lora", seed: int = 1, **others: Any) -> RunResult:
    """One run; `changes` are config keys, all else fields of `RunResult`."""
    changes = others.pop("changes", None)
    name = others.pop("folder", f"20260101-0000{seed:02d}-{method}-tiny-0000")
    standard: dict[str, Any] = {
        "folder": RunFolder(Path("/runs") / name),
        "config": config(method, changes, seed),
        "mlflow_run_id": None,
        "base": None,
        "digests": {"base": "b" * 64, "tokenizer": "t" * 64, "train": "d" * 64},
        "choices": {"device_name": "CPU", "precision": "fp32", "attention": "varlen"},
        "versions": {"llmtune": "0.1.0", "torch": "2.13.0"},
        "cost": COSTS.get(method, RunCost()),
    }
    return RunResult(tuned=tuned, method=method, seed=seed, **{**standard, **others})


def base_losses(num_examples: int = NUM_EXAMPLES, level: float = 3.0) -> ExampleLosses:
    """The base model's: `level` nats a token on average, harder and easier examples."""
    random = np.random.default_rng(7)
    return losses(10 * (level + 0.5 * random.standard_normal(num_examples)))


def sweep(
    gains: Mapping[str, float],
    seeds: Sequence[int] = (1, 2, 3),
    *,
    spread: float = 0.01,
    num_examples: int = NUM_EXAMPLES,
    **others: Any,
) -> list[RunResult]:
    """Runs of several methods on several seeds.

    Args:
        gains: method to how far it is below the base, nats a token.
        seeds: the seeds.
        spread: standard deviation of a seed's effect on a run's mean, nats a token; an example's own is ten times it.
        num_examples: examples of the test set.
        others: further fields of each result.
    """
    return [
        run for method, gain in gains.items() for run in runs_of(method, gain, seeds, spread, num_examples, **others)
    ]


def runs_of(
    method: str,
    gain: float,
    seeds: Sequence[int] = (1, 2, 3),
    spread: float = 0.01,
    num_examples: int = NUM_EXAMPLES,
    **others: Any,
) -> Iterator[RunResult]:
    """The runs of one setting, see `sweep`; `name` tells settings of one method apart."""
    base = base_losses(num_examples)
    name = others.pop("name", method)
    for seed in seeds:
        random = np.random.default_rng([seed, *name.encode()])
        noise = spread * (random.standard_normal() + 10 * random.standard_normal(num_examples))
        fields = {"base": base, "validation_loss": 3.0 - gain, "folder": f"20260101-0000{seed:02d}-{name}", **others}
        yield result(losses(base.loss_sums - 10 * (gain + noise)), method, seed, **fields)
