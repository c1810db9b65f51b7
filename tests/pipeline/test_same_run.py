"""Same config, same run: in any process, folder, time zone or locale, however it is evaluated, logged and tracked."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llmtune.runs.layout import RunFolder
from llmtune.runs.lookup import list_runs
from llmtune.runs.manifest import Manifest

from .conftest import ASSETS, SHORT

TIMED = ("seconds", "tokens_per_second", "memory")
WORDS = [*SHORT, f"model={ASSETS / 'tiny_llama'}", "method=lora", "train.select_checkpoint=final"]
QUIET = ["tracking.backend=none"]
MLFLOW = ["tracking.log_model=none", "tracking.system_metrics=false"]
PLACES = [
    {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C"},
    {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "COLUMNS": "40"},
    {"PYTHONHASHSEED": "4294967295", "TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8", "USER": "somebody"},
    {"PYTHONHASHSEED": "17", "TZ": "Pacific/Kiritimati", "LC_ALL": "POSIX", "PYTHONUTF8": "0"},
    {"PYTHONHASHSEED": "random", "TZ": "Pacific/Niue", "LC_ALL": "de_DE.ISO-8859-1", "PYTHONOPTIMIZE": "1"},
]


@dataclass(frozen=True)
class Outcome:
    """What a run came to, times, speeds and memory left out."""

    weights: str
    """Sha256 of the final weights' file."""
    optimizer: str
    """Sha256 of the optimizer's state."""
    steps: dict[int, dict[str, float]]
    """Metrics of each training step."""
    validation: dict[int, float]
    """Validation loss by step."""
    prepared: dict[str, str]
    """Sha256 of each split's columns, but for where its file lay."""
    evaluated: dict[str, Any]
    """What `evaluate` found."""
    predictions: dict[str, Any]
    """Loss of each test example, before and after."""
    samples: str
    """Sampled answers, as they were written."""


def outcome(folder: RunFolder) -> Outcome:
    """Read from the run's folder and from the prepared data's."""
    manifest = Manifest(folder.manifest_file)
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    prepared = Path(manifest.stage("prepare")["folder"])
    return Outcome(
        weights=sha256(folder.final_checkpoint / "adapter_model.safetensors"),
        optimizer=sha256(folder.final_checkpoint / "optimizer.safetensors"),
        steps={line["step"]: untimed(line) for line in lines if "train/loss" in line},
        validation={line["step"]: line["evaluate/validation_loss"] for line in lines if "train/loss" not in line},
        prepared={path.name: table_digest(path) for path in prepared.glob("*.arrow")},
        evaluated=untimed(manifest.stage("evaluate")),
        predictions={
            path.name: pq.read_table(path).to_pydict()
            for path in folder.predictions_file("base").parent.glob("*.parquet")
        },
        samples=folder.samples_file.read_text(),
    )


def untimed(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if not any(word in name for word in TIMED)}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table_digest(path: Path) -> str:
    columns = pa.ipc.open_file(path).read_all().drop_columns(["source_path"]).to_pydict()
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()


def start(folder: Path, place: dict[str, str], words: Sequence[str]) -> subprocess.Popen[str]:
    """The command in a process, a working folder and a cache of its own."""
    folder.mkdir(parents=True)
    shutil.copy(ASSETS / "examples.jsonl", folder / "rows.jsonl")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "MLFLOW"))}
    environment |= {"PYTHONPATH": str(ASSETS.parent.parent / "src"), "OMP_NUM_THREADS": "1", **place}
    command = [sys.executable, "-m", "llmtune", "prepare", "train", "evaluate", *WORDS]
    command += ["data.path=rows.jsonl", "cache_dir=cache", *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def finish(process: subprocess.Popen[str], folder: Path) -> Outcome:
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    return outcome(list_runs(folder / "runs")[0].folder)


def run_in(root: Path, places: Sequence[dict[str, str]], words: Sequence[str]) -> list[Outcome]:
    """What the same config comes to in each place, two processes at a time."""
    found = []
    for first in range(0, len(places), 2):
        pair = range(first, min(first + 2, len(places)))
        folders = [root / ("deeper" * number) / f"data{number}" for number in pair]
        started = [start(folder, places[number], words) for number, folder in zip(pair, folders, strict=True)]
        try:
            found += [finish(process, folder) for process, folder in zip(started, folders, strict=True)]
        finally:
            for process in started:
                process.kill()
    return found


def check_sound(found: Outcome) -> None:
    """There is something to compare."""
    assert len(found.steps) == 8
    assert {"train/loss", "train/grad_norm", "train/learning_rate"} <= set(found.steps[1])
    assert set(found.prepared) == {"train.arrow", "validation.arrow", "test.arrow"}
    assert {"loss", "base_loss", "perplexity"} <= set(found.evaluated)
    assert {"base.parquet", "tuned.parquet"} <= set(found.predictions)
    assert found.validation
    assert len(json.loads(found.samples)) > 0


def test_two_fresh_processes_in_other_places_come_to_the_same(tmp_path) -> None:
    first, second = run_in(tmp_path, [PLACES[1], PLACES[2]], [*QUIET, "evaluate.num_general_examples=2"])
    check_sound(first)
    assert first == second
    general = first.evaluated["general"]
    assert general["num_examples"] == 2 and general["num_supervised_tokens"] == 2 * 63
    for name, loss in (("tuned", general["loss"]), ("base", general["base_loss"])):
        columns = first.predictions[f"general_{name}.parquet"]
        assert sum(columns["loss_sum"]) / sum(columns["num_supervised_tokens"]) == pytest.approx(loss)
    assert general["loss"] != general["base_loss"]
    assert first.evaluated["num_test_seen"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_so_do_five(tmp_path) -> None:
    found = run_in(tmp_path, PLACES, MLFLOW)
    check_sound(found[0])
    assert all(other == found[0] for other in found[1:])


def run_here(workplace, *words: str) -> Outcome:
    assert workplace.train("prepare", "train", "evaluate", "method=lora", WORDS[-1], *words) == 0
    return outcome(workplace.newest)


def test_how_it_is_evaluated_logged_saved_and_tracked_changes_nothing(workplace) -> None:
    plain = run_here(workplace, *QUIET)
    check_sound(plain)
    often = ["train.validate_every_steps=1", "train.log_every_steps=5", "train.checkpoint_every_steps=1"]
    seldom = ["train.validate_every_steps=8", "train.log_every_steps=100", "evaluate.base=false"]
    found = {"often": run_here(workplace, *QUIET, *often), "seldom": run_here(workplace, *QUIET, *seldom)}
    for way, other in found.items():
        assert other.weights == plain.weights, way
        assert other.optimizer == plain.optimizer, way
        assert other.steps == plain.steps, way
        assert other.evaluated["loss"] == plain.evaluated["loss"], way
        assert other.predictions["tuned.parquet"] == plain.predictions["tuned.parquet"], way
        assert other.validation[8] == plain.validation[8], way
    assert set(found["often"].validation) == set(range(1, 9))
    assert set(found["seldom"].validation) == {8}
    assert run_here(workplace, *MLFLOW) == plain


def test_control_another_seed_and_a_stream_that_nobody_seeds_are_told_apart(workplace, monkeypatch) -> None:
    plain, other = run_here(workplace, *QUIET), run_here(workplace, *QUIET, "seed=2")
    assert other.weights != plain.weights
    assert other.steps != plain.steps
    assert other.prepared == plain.prepared, "the split is no matter of the seed"

    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    first, second = run_here(workplace, *QUIET), run_here(workplace, *QUIET)
    assert first.weights != second.weights
    assert first.steps != second.steps
