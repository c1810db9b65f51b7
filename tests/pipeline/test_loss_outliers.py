"""`data.loss_outliers`: rows that the base model finds strange are listed or left out, the same ones every time.

The base model is a tiny one that was taught the ordinary rows for a second or two; the strange rows are noise.
"""

import json
import random
import re
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune.cli import run
from llmtune.stages import loss_outliers
from llmtune.training import ahead

from .conftest import ASSETS, SHORT, Workplace
from .long_runs import TWO
from .test_prepare import pairs

WORDS = ["method=lora", "tracking=none", "train.precision=fp32", "train.max_steps=2", "evaluate.num_samples=0"]
NOISY = (20, 45, 70)
"""Rows, counted from 0; none of them is held out."""
REASON = "the base model's loss stands out"


def _rows() -> list[dict[str, str]]:
    rows, chosen = pairs(90), random.Random(1)
    for row in NOISY:
        rows[row]["completion"] = " " + "".join(chosen.choices(string.ascii_letters + string.digits, k=30))
    return rows


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model and the file of examples."""
    folder = tmp_path_factory.mktemp("taught") / "model"
    shutil.copytree(ASSETS / "tiny_llama", folder)
    rows = _rows()
    (folder.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ordinary = [row["prompt"] + row["completion"] for number, row in enumerate(rows) if number not in NOISY]
    batch = tokenizer(ordinary, padding=True, padding_side="right", return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """Grows by a number of examples each time a base model is measured."""
    counts: list[int] = []
    measure = loss_outliers.evaluate_loss

    def counting(model, table, settings):
        counts.append(len(table))
        return measure(model, table, settings)

    monkeypatch.setattr(loss_outliers, "evaluate_loss", counting)
    return counts


def words(workplace: Workplace, taught: Path, *more: str) -> list[str]:
    short = [word for word in SHORT if "num_examples" not in word]
    named = [f"model={taught}", f"data.path={taught.parent / 'rows.jsonl'}", f"cache_dir={workplace.folder / 'cache'}"]
    return [*short, *named, *WORDS, *more]


def report_of(workplace: Workplace) -> dict:
    return json.loads(workplace.newest.data_report.read_text())


def places(taught: Path) -> list[str]:
    return [f"{taught.parent / 'rows.jsonl'}:{row + 1}" for row in NOISY]


def test_they_are_listed_by_line_and_measured_once(workplace, taught, measured, capsys) -> None:
    assert workplace.type(*words(workplace, taught, "data.loss_outliers=report", "prepare")) == 0
    report = report_of(workplace)
    found = report["outliers"]["loss"]
    assert [line.partition(": loss ")[0] for line in found["listed"]] == places(taught)
    for line in found["listed"]:
        found_in = re.search(r"loss ([\d.]+) nats a token, the median is ([\d.]+)$", line)
        assert found_in is not None
        high, median = map(float, found_in.groups())
        assert high > median + 1
    assert found["count"] == 3 and "3 by loss" in capsys.readouterr().out
    page = re.sub(r"<[^>]*>", "", workplace.newest.data_page.read_text())
    assert all(place in page for place in places(taught)) and "nats a token" in page
    kept = report["rows"]["kept"]["train"]
    assert report["splits"]["train"]["num_examples"] == kept and measured == [kept]
    # another run, and one that goes on to train: the same figures, nothing measured again
    assert workplace.type(*words(workplace, taught, "data.loss_outliers=report", "train")) == 0
    assert report_of(workplace) == report and measured == [kept]
    # control: another base model has other losses
    other = [f"model={ASSETS / 'tiny_llama'}", "data.loss_outliers=report", "prepare"]
    assert workplace.type(*[word for word in words(workplace, taught) if "model=" not in word], *other) == 0
    assert measured == [kept, kept]


def test_they_are_left_out_of_training_and_the_run_goes_on_without_them(workplace, taught, measured, capsys) -> None:
    assert workplace.type(*words(workplace, taught, "prepare")) == 0
    whole, kept = workplace.manifest.section("data")["digest"], report_of(workplace)["rows"]["kept"]["train"]
    assert measured == [] and "loss" not in report_of(workplace)["outliers"]
    capsys.readouterr()
    assert workplace.type(*words(workplace, taught, "data.loss_outliers=drop", "prepare")) == 0
    begun, digest = workplace.newest, workplace.manifest.section("data")["digest"]
    assert re.search(rf"{REASON} +│ +3 │", capsys.readouterr().out)
    assert report_of(workplace)["rows"]["dropped"][REASON] == 3
    assert report_of(workplace)["rows"]["kept"]["train"] == report_of(workplace)["splits"]["train"]["num_rows"]
    assert digest != whole and report_of(workplace)["digest"] == digest
    assert report_of(workplace)["splits"]["train"]["num_examples"] == kept - 3
    assert workplace.type("train", f"run={begun.path}") == 0
    assert workplace.type("train", f"run={begun.path}", "train.max_steps=3", "resume_allow=[train.max_steps]") == 0
    assert workplace.type("evaluate", "export", f"run={begun.path}", "export.formats=[adapter]") == 0
    assert workplace.manifest.section("data")["digest"] == digest
    card = (workplace.newest.exports / "adapter" / "README.md").read_text()
    assert f"training examples | {kept - 3} " in card and digest in card
    # a second run takes the same losses; the lost file is measured again, to the same data
    for losses in (None, workplace.folder / "cache"):
        for file in losses.rglob("base_loss-*.npy") if losses else ():
            file.unlink()
        assert workplace.type(*words(workplace, taught, "data.loss_outliers=drop", "prepare")) == 0
        assert workplace.manifest.section("data")["digest"] == digest
    assert measured == [kept, kept]


def test_no_step_takes_one_that_was_left_out(workplace, taught, monkeypatch) -> None:
    taken: set[str] = set()
    make = ahead.collate

    def noting(table, indices, **how):
        taken.update(table.source(index) for index in indices)
        return make(table, indices, **how)

    monkeypatch.setattr(ahead, "collate", noting)
    for action, expected in (("report", set(places(taught))), ("drop", set())):
        taken.clear()
        more = [f"data.loss_outliers={action}", "train.max_steps=null", "train.num_epochs=1", "train"]
        assert workplace.type(*words(workplace, taught, *more)) == 0
        assert len(taken) == report_of(workplace)["splits"]["train"]["num_examples"]
        assert taken & set(places(taught)) == expected


@pytest.mark.slow
def test_two_processes_leave_out_what_one_does(workplace, taught) -> None:
    digests, losses = [], []
    for name, hardware in (("one", ["hardware=cpu"]), ("two", TWO)):
        more = [*hardware, "data.loss_outliers=drop", f"runs_dir={name}", "prepare"]
        found = [word for word in words(workplace, taught, *more) if not word.startswith("cache_dir")]
        assert run([*found, f"cache_dir={workplace.folder / name / 'cache'}"]) == 0
        (manifest,) = (workplace.folder / name).glob("*/manifest.json")
        digests.append(json.loads(manifest.read_text())["data"]["digest"])
        (file,) = (workplace.folder / name / "cache").rglob("base_loss-*.npy")
        losses.append(np.load(file))
    assert digests[0] == digests[1]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0].std() > 0.5


def test_weights_that_are_only_measured_need_no_losses_of_training_data(workplace, taught, measured, capsys) -> None:
    """Whatever the run that trained them did; its own training data stay what they were."""
    known = workplace.folder / "known.jsonl"
    known.write_text("".join(json.dumps(row) + "\n" for row in _rows()[:10]))
    more = ["data.loss_outliers=drop", f"data.eval_path={known}", "train"]
    assert workplace.type(*words(workplace, taught, *more)) == 0
    assert len(measured) == 1
    new = workplace.folder / "new.jsonl"
    new.write_text("".join(json.dumps(row) + "\n" for row in pairs(10, 700)))
    trained = workplace.newest.path
    for test_file in (known, new):
        capsys.readouterr()
        assert workplace.type("evaluate", f"run={trained}", f"data.eval_path={test_file}", "data.max_seq_len=24") == 0
        assert "may know them" not in capsys.readouterr().out
    assert len(measured) == 1
