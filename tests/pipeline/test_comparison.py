"""Real runs to a comparison: what the pipeline records is what a comparison reads."""

import math
from dataclasses import astuple

import numpy as np
import pytest

from llmtune.comparison.compare import compare
from llmtune.comparison.outcome import Row
from llmtune.comparison.reading import read_result
from llmtune.config.compare import CompareConfig
from llmtune.errors import RunError
from llmtune.runs.manifest import Manifest

QUICK = ["tracking=none", "evaluate.num_samples=0", "evaluate.num_general_examples=8", "data.num_test_examples=25"]


def test_the_record_of_a_real_run_is_read(workplace) -> None:
    assert workplace.train(*QUICK, "train") == 0
    folder = workplace.newest
    with pytest.raises(RunError, match=r"hasn't measured its weights; type: python -m llmtune ") as refusal:
        read_result(folder)
    typed = str(refusal.value).partition("python -m llmtune ")[2].split()
    assert workplace.type(*typed) == 0

    found = compare([read_result(folder)], CompareConfig(price_per_hour=3600.0), "a run")
    assert (found.unfair, found.metric, found.axes) == ([], "loss", ())
    base, lora = found.rows
    evaluated = workplace.manifest.stage("evaluate")
    assert base.name == "base model"
    assert base.loss.value == pytest.approx(evaluated["base_loss"], rel=1e-12)
    assert (lora.name, lora.seeds) == ("lora", (1,))
    check_row(lora)
    assert found.num_test_examples == evaluated["num_examples"] == 25
    assert found.verdict.startswith("lora ") and found.verdict.endswith("no claim; run seed=1,2,3.")


def check_row(row: Row) -> None:
    """Compare a row's figures with those that the stages wrote."""
    manifests = [Manifest(run.folder.manifest_file) for run in row.runs]
    evaluated, trained = ([manifest.stage(name) for manifest in manifests] for name in ("evaluate", "train"))
    mean = np.mean([figures["loss"] for figures in evaluated])
    assert row.loss.value == pytest.approx(mean, rel=1e-12)
    assert row.perplexity.value == pytest.approx(math.exp(mean), rel=1e-12)
    assert row.gain is not None
    assert row.gain.value == pytest.approx(evaluated[0]["base_loss"] - mean, rel=1e-9)
    risen = np.mean([figures["general"]["loss"] - figures["general"]["base_loss"] for figures in evaluated])
    assert row.forgetting is not None
    assert row.forgetting.value == pytest.approx(risen, rel=1e-6, abs=1e-12)
    assert row.validation_loss == pytest.approx(np.mean([train["best_validation_loss"] for train in trained]))
    seconds = np.mean([train["seconds"] for train in trained])
    assert row.cost.train_seconds == pytest.approx(seconds)
    assert row.price == pytest.approx(seconds)  # at 3600 an hour
    assert row.cost.num_trainable == trained[0]["num_trainable"]
    assert row.cost.device == "CPU"
    assert {"base", "tokenizer", "train", "sources", "general"} <= set(row.runs[0].digests)
    assert None not in astuple(row.runs[0].trained_on)
    assert row.runs[0].trained_on.num_steps == trained[0]["steps"]
