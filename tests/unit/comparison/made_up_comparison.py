"""Comparisons made up for what is shown of them; every figure is chosen, none is computed from another."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.comparison.outcome import Comparison, MissingRun, Pair, Row, Standing
from llmtune.comparison.results import ExampleLosses, RunCost, RunResult
from llmtune.comparison.statistics import Basis, Estimate, Interval
from llmtune.runs.layout import RunFolder

HOSTILE = 'lora|</td></svg><script>alert("x")</script>`*_[a](http://b.c)'
FOLDER = Path("/nowhere/runs")


def estimate(value: float, half: float, *, seeds: int = 3, basis: Basis = "seeds") -> Estimate:
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        standard_error=half / 3,
        degrees_of_freedom=4.5,
        p_value=0.02,
        num_seeds=seeds,
        num_clusters=40,
        basis=basis,
    )


def losses(value: float = 2.0) -> ExampleLosses:
    return ExampleLosses(
        example_ids=("a", "b"),
        clusters=np.array(["a", "b"]),
        loss_sums=np.array([10 * value, 30 * value]),
        num_tokens=np.array([10, 30]),
        num_bytes=np.array([40, 120]),
    )


def run(name: str, seed: int, *, method: str = "lora", folder: Path = FOLDER, cost: RunCost | None = None) -> RunResult:
    return RunResult(
        folder=RunFolder(folder / name),
        config={"seed": seed, "method.name": method},
        mlflow_run_id=f"{seed:032x}",
        method=method,
        seed=seed,
        tuned=losses(),
        base=losses(3.0),
        validation_loss=2.25,
        digests={"base": "ab" * 32},
        choices={"precision": "bf16"},
        versions={"llmtune": "0.8.0"},
        cost=cost or RunCost(),
    )


def row(
    name: str,
    values: Mapping[str, Any],
    loss: float,
    *,
    half: float = 0.02,
    seeds: Sequence[int] = (1, 2, 3),
    standing: Standing | None = None,
    cost: RunCost | None = None,
    folder: Path = FOLDER,
    **more: Any,
) -> Row:
    """A tuned row; its perplexity, gain and forgetting follow its loss."""
    basis: Basis = {1: "examples", 2: "few seeds"}.get(len(seeds), "seeds")  # type: ignore[assignment]
    found = estimate(loss, half, seeds=len(seeds), basis=basis)
    method = str(values.get("method.name", "lora"))
    entries: dict[str, Any] = {
        "loss": found,
        "perplexity": Interval(value=math.exp(loss), low=math.exp(found.low), high=math.exp(found.high)),
        "gain": estimate(3.0 - loss, half),
        "forgetting": estimate(0.01 + (3.0 - loss) / 20, 0.004),
        "validation_loss": loss + 0.05,
        "is_chosen": standing is not None,
    }
    return Row(
        name=name,
        values=values,
        group={},
        method=method,
        runs=tuple(run(f"{method}-{loss}-{seed}", seed, method=method, folder=folder) for seed in seeds),
        standing=standing,
        cost=cost or RunCost(),
        **(entries | more),
    )


def base() -> Row:
    found = estimate(3.0, 0.06, seeds=0, basis="no seeds")
    perplexity = Interval(value=math.exp(3.0), low=math.exp(2.94), high=math.exp(3.06))
    return Row(
        name="base model", values={}, group={}, method=None, runs=(run("x", 1),), loss=found, perplexity=perplexity
    )


def cost(memory: float, time: float, trainable: int = 1_250_000, speed: float = 3210.4) -> RunCost:
    return RunCost(
        num_trainable=trainable,
        num_parameters=125_000_000,
        peak_memory_gib=memory,
        tokens_per_second=speed,
        train_seconds=time,
        device="NVIDIA H200",
    )


def methods(folder: Path = FOLDER, **more: Any) -> Comparison:
    """Full, LoRA and QLoRA with three seeds each."""
    rows = [
        base(),
        row(
            "full",
            {"method.name": "full"},
            2.0,
            standing="reference",
            cost=cost(8.0, 3720.0, 125_000_000, 1000.0),
            price=2.58,
            folder=folder,
        ),
        row(
            "lora",
            {"method.name": "lora"},
            2.02,
            standing="good enough",
            cost=cost(4.0, 1800.0),
            price=1.25,
            to_full=estimate(0.02, 0.015),
            quality=Interval(value=0.98, low=0.966, high=0.994),
            adjusted_p=0.004,
            folder=folder,
        ),
        row(
            "qlora",
            {"method.name": "qlora"},
            2.2,
            standing="undecided",
            cost=cost(2.0, 2400.0, 1_250_000, 2400.0),
            price=1.67,
            to_full=estimate(0.2, 0.25),
            quality=Interval(value=0.8, low=0.55, high=1.05),
            adjusted_p=0.2,
            would_decide="about 4 more seeds",
            folder=folder,
        ),
    ]
    pairs = [
        Pair(first="full", second="lora", difference=estimate(-0.02, 0.015), adjusted_p=0.012, lower="full"),
        Pair(first="full", second="qlora", difference=estimate(-0.2, 0.25), adjusted_p=0.2, lower=None),
        Pair(first="lora", second="qlora", difference=estimate(-0.18, 0.25), adjusted_p=0.2, lower=None),
    ]
    entries: dict[str, Any] = {
        "rows": rows,
        "pairs": pairs,
        "verdict": "At default settings lora is good enough: it keeps 98 % of what full fine-tuning gains, "
        "in half its memory. qlora is undecided; about 4 more seeds may decide it.",
        "notes": ["The learning rate was not searched, so each method runs at its default."],
        "missing": [],
        "price_per_hour": 2.5,
    }
    return comparison(axes=["method.name"], **(entries | more))


def grid() -> Comparison:
    """A sweep of two keys, one of whose jobs failed."""
    rows = [base()]
    for rank, rate, loss in ((8, 0.0001, 2.3), (8, 0.001, 2.1), (16, 0.0001, 2.25), (16, 0.001, 2.05), (4, 0.001, 2.2)):
        values = {"method.rank": rank, "train.learning_rate": rate}
        rows.append(
            row(
                f"rank={rank} learning_rate={rate}",
                values,
                loss,
                cost=cost(3 + rank / 16, 600 + 3 * rank),
                to_full=None,
            )
        )
    missing = [MissingRun(name="rank=4 learning_rate=0.0001", status="FAILED", error="out of memory")]
    return comparison(rows=rows, axes=["method.rank", "train.learning_rate"], missing=missing)


def many(count: int, **more: Any) -> Comparison:
    """Rows with long names, of which each pair is told."""
    rows = [base()]
    for number in range(count):
        values = {"method.name": "lora", "method.rank": 2**number, "train.learning_rate": 0.0002}
        name = " ".join(f"{key}={value}" for key, value in values.items())
        rows.append(row(name, values, 2 + number / 50, cost=cost(2 + number / 10, 60 + number)))
    names = [entry.name for entry in rows[1:]]
    pairs = [
        Pair(first=first, second=second, difference=estimate(-0.1, 0.2), adjusted_p=0.9, lower=None)
        for number, first in enumerate(names)
        for second in names[number + 1 :]
    ]
    entries: dict[str, Any] = {"rows": rows, "pairs": pairs, "verdict": "No row can be told from the others."}
    return comparison(axes=["method.name", "method.rank", "train.learning_rate"], **(entries | more))


def comparison(**entries: Any) -> Comparison:
    """A comparison of what is given on a made-up test set."""
    known: dict[str, Any] = {"title": "20260101-sweep", "metric": "loss", "pairs": [], "num_test_examples": 400}
    return Comparison(**(known | {"num_test_tokens": 52_100, "num_clusters": 40} | entries))


def write_metrics(folder: Path, train: Sequence[float], validation: Mapping[int, float]) -> None:
    """A run folder with a loss a step from step 1, and validation losses by step."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"step": step, "train/loss": value} for step, value in enumerate(train, 1)]
    entries += [{"step": step, "evaluate/validation_loss": value} for step, value in validation.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
