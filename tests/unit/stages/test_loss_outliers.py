"""Loss outliers with losses set by hand: what is listed, left out, kept for later, and measured again."""

import json
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from llmtune.config.data import FilesConfig
from llmtune.data.preparing.prepared import PreparedData, prepare_data
from llmtune.runs.layout import RunFolder
from llmtune.stages import loss_outliers
from llmtune.stages.loss_outliers import with_loss_outliers

pytestmark = pytest.mark.fast
NUM_ROWS = 60
HIGH, LOW, LOST = 7, 30, 41
"""Lines with a loss of 12.5, of 0.125 and of none that is a number; the others' are 2.0."""


@pytest.fixture
def data(tmp_path, tiny_gpt2) -> PreparedData:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"{number} " * 8}) + "\n" for number in range(NUM_ROWS)))
    (tmp_path / "e.txt").write_text("a test text")
    config = FilesConfig(
        path=str(file), eval_path=str(tmp_path / "e.txt"), validation_fraction=0.0, outliers="ignore", num_workers=0
    )
    return prepare_data(config, AutoTokenizer.from_pretrained(tiny_gpt2), "t", tmp_path / "cache")


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Grows by what is done to measure; every loss follows from the example's line."""
    done: list[str] = []
    by_line = {HIGH: 12.5, LOW: 0.125, LOST: np.nan}

    def measure(model: Any, table: Any, settings: Any) -> Any:
        done.append("measured")
        lines = [int(table.source(index).rpartition(":")[2]) for index in range(len(table))]
        losses = np.array([by_line.get(line, 2.0) for line in lines])
        counts = np.arange(1, len(table) + 1)
        return SimpleNamespace(loss_sums=losses * counts, supervised_tokens=counts)

    monkeypatch.setattr(loss_outliers, "load_frozen", lambda source, how: done.append("loaded"))
    monkeypatch.setattr(loss_outliers, "evaluate_loss", measure)
    monkeypatch.setattr(loss_outliers, "attention_for_evaluation", lambda context, model: SimpleNamespace(packed=True))
    return done


def context(
    action: str, run: str | None = None, weights: str = "w" * 64, precision: str = "fp32", **changed: Any
) -> Any:
    """A run in a folder of its own, or the one that is named."""
    run = run or tempfile.mkdtemp()
    config = {"is_trained_elsewhere": False, "evaluate": SimpleNamespace(batch_tokens=64)}
    return SimpleNamespace(
        config=SimpleNamespace(data=SimpleNamespace(loss_outliers=action), **config | changed),
        source=SimpleNamespace(weights_digest=weights),
        precision=SimpleNamespace(name=precision),
        device=torch.device("cpu"),
        how=None,
        pad_token_id=0,
        trained_run=RunFolder(Path(run)),
    )


def test_ignored_they_cost_nothing(data, measured):
    assert with_loss_outliers(context("ignore"), data) is data
    assert measured == []
    with_loss_outliers(context("report"), data)
    assert measured == ["loaded", "measured"]


def test_they_are_listed_in_the_files_order_with_their_loss(data, measured, tmp_path):
    found = with_loss_outliers(context("report"), data)
    file = tmp_path / "a.jsonl"
    assert found.report["outliers"] == {
        "loss": {
            "count": 3,
            "listed": [
                f"{file}:{HIGH}: loss 12.50 nats a token, the median is 2.00",
                f"{file}:{LOW}: loss 0.12 nats a token, the median is 2.00",
                f"{file}:{LOST}: loss nan nats a token, the median is 2.00",
            ],
        }
    }
    assert found.digest == data.digest and len(found.train) == NUM_ROWS
    assert "loss" not in data.report["outliers"]


def test_dropped_they_are_in_no_split(data, measured, tmp_path):
    found = with_loss_outliers(context("drop"), data)
    lines = {int(found.train.source(index).rpartition(":")[2]) for index in range(len(found.train))}
    assert lines == set(range(1, NUM_ROWS + 1)) - {HIGH, LOW, LOST}
    assert found.train.num_tokens.tolist() == [len(found.train.input_ids(index)) for index in range(len(found.train))]
    assert found.digest != data.digest and len(found.test) == 1
    assert found.digest == with_loss_outliers(context("drop"), data).digest


def test_nothing_to_drop_leaves_the_data_as_they_are(data, measured, monkeypatch):
    monkeypatch.setattr(loss_outliers, "find_loss_outliers", lambda losses: np.zeros(len(losses), np.bool_))
    assert with_loss_outliers(context("drop"), data).digest == data.digest


@pytest.mark.parametrize(
    ("other", "times"), [({}, 1), ({"weights": "v" * 64}, 2), ({"precision": "bf16"}, 2)], ids=["same", "base", "type"]
)
def test_they_are_measured_once_for_each_base_and_precision(data, measured, other, times):
    for _ in range(2):
        with_loss_outliers(context("report"), data)
        with_loss_outliers(context("drop", **other), data)
    assert measured.count("measured") == measured.count("loaded") == times
    assert len(list(data.folder.glob("base_loss-*.npy"))) == times
    assert not list(data.folder.glob(".base_loss*"))


def _halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _of_fewer(file: Path) -> None:
    np.save(file, np.zeros(NUM_ROWS - 1))


def _other_type(file: Path) -> None:
    np.save(file, np.zeros(NUM_ROWS, np.float32))


@pytest.mark.parametrize(
    "harm", [Path.unlink, _halved, _flipped, lambda file: file.write_bytes(b""), _of_fewer, _other_type]
)
def test_a_damaged_file_of_losses_is_measured_again(data, measured, harm):
    before = with_loss_outliers(context("drop"), data)
    (file,) = data.folder.glob("base_loss-*.npy")
    whole = file.read_bytes()
    harm(file)
    assert with_loss_outliers(context("drop"), data).digest == before.digest
    assert measured.count("measured") == 2 and file.read_bytes() == whole


@pytest.mark.parametrize("same", [True, False])
def test_a_run_that_trains_nothing_takes_what_its_training_left_out(data, measured, tmp_path, same):
    trained = str(tmp_path / "run")
    begun = with_loss_outliers(context("drop", trained), data)
    del measured[:]
    if not same:
        data = replace(data, digest="other")
    found = with_loss_outliers(context("drop", is_trained_elsewhere=True, run=trained), data)
    assert len(found.train) == (NUM_ROWS - 3 if same else NUM_ROWS)
    assert (found.digest == begun.digest) == same
    assert measured == []


@pytest.mark.parametrize("weights", ["w" * 64, "v" * 64])
def test_a_run_goes_on_without_the_same_rows_though_the_losses_are_gone(data, measured, tmp_path, monkeypatch, weights):
    begun = with_loss_outliers(context("drop", str(tmp_path / "run")), data)
    for file in data.folder.glob("base_loss-*"):
        file.unlink()
    # measured on this machine they are others
    monkeypatch.setattr(loss_outliers, "find_loss_outliers", lambda losses: np.arange(len(losses)) == 0)
    gone_on = with_loss_outliers(context("drop", str(tmp_path / "run"), weights, "bf16"), data)
    assert (gone_on.digest == begun.digest) == (weights == "w" * 64)
    assert (gone_on.report == begun.report) == (weights == "w" * 64)
    assert measured.count("measured") == (1 if weights == "w" * 64 else 2)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"data_digest": 1}', "indices: 99", "indices: [0.5", 'indices: ["a"]', "listed: 3"]
)
def test_a_damaged_list_in_the_run_is_made_anew(data, measured, tmp_path, content):
    begun = with_loss_outliers(context("drop", str(tmp_path / "run")), data)
    file = tmp_path / "run" / "loss_outliers.json"
    whole = file.read_bytes()
    key, colon, value = content.partition(": ")
    changed = {**json.loads(whole), key: json.loads(value)} if colon and value[-1] in "9]3" else None
    file.write_text(content if changed is None else json.dumps(changed))
    assert with_loss_outliers(context("drop", str(tmp_path / "run")), data).digest == begun.digest
    assert measured.count("measured") == 1 and file.read_bytes() == whole


def test_rows_that_are_dropped_are_accounted_for(data, measured):
    found = with_loss_outliers(context("drop"), data).report
    dropped = {"the base model's loss stands out": 3}
    assert found["rows"] == {"in": NUM_ROWS + 1, "kept": {"train": 57, "validation": 0, "test": 1}, "dropped": dropped}
    assert [source["dropped"] for source in found["sources"]] == [dropped, {}]
    assert found["splits"]["train"]["num_rows"] == found["splits"]["train"]["num_examples"] == 57


def test_jobs_that_start_together_measure_once(data, measured, monkeypatch, tmp_path):
    measure = loss_outliers.evaluate_loss
    monkeypatch.setattr(loss_outliers, "evaluate_loss", lambda *given: time.sleep(0.3) or measure(*given))
    found = []
    jobs = [
        threading.Thread(
            target=lambda run=number: found.append(with_loss_outliers(context("drop", str(tmp_path / str(run))), data))
        )
        for number in range(3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert measured.count("measured") == 1
    assert len(found) == 3 and len({one.digest for one in found}) == 1


def test_of_a_runs_processes_only_the_first_holds_the_lock(data, measured, monkeypatch):
    """Another of them comes while the first holds it, and takes part in the measuring."""
    monkeypatch.setattr(loss_outliers.distributed, "is_first", lambda: False)
    held = []
    monkeypatch.setattr(loss_outliers, "alone", lambda *given: held.append(given))
    with_loss_outliers(context("drop"), data)
    assert held == [] and measured.count("measured") == 1
    assert not list(data.folder.glob("base_loss-*"))


def test_a_base_model_that_is_only_measured_looks_for_none(data, measured):
    assert with_loss_outliers(context("drop", is_trained_elsewhere=True), data) is data
    assert measured == []


def test_a_row_that_is_repeated_is_listed_once(data, measured, tmp_path):
    doubled = data.train.without(np.zeros(NUM_ROWS, np.bool_))
    doubled._order = np.repeat(doubled._order, 2)
    for name in ("num_tokens", "num_supervised_tokens", "num_supervised_bytes"):
        setattr(doubled, name, np.repeat(getattr(doubled, name), 2))
    found = with_loss_outliers(context("drop"), PreparedData(**{**vars(data), "train": doubled}))
    assert found.report["outliers"]["loss"]["count"] == len(found.report["outliers"]["loss"]["listed"]) == 3
    assert len(found.train) == 2 * (NUM_ROWS - 3)
