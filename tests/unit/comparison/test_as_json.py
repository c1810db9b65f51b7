"""The JSON of a comparison holds every number as it is, and nothing that JSON lacks."""

import json
import math
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up_comparison import FOLDER, base, comparison, estimate, losses, methods, row

from llmtune.comparison import as_json as module
from llmtune.comparison.as_json import as_json
from llmtune.comparison.outcome import Comparison, MissingRun, Row
from llmtune.comparison.results import RunCost
from llmtune.comparison.statistics import Interval

pytestmark = pytest.mark.fast


def test_every_figure_comes_back_from_the_text_as_it_was() -> None:
    precise = estimate(1 / 3, 1 / 7)
    found = methods(missing=[MissingRun(name="qlora", status="FAILED", error=None)])
    rows = [*found.rows[:2], replace(found.rows[2], to_full=precise), found.rows[3]]
    read = json.loads(json.dumps(as_json(replace(found, rows=rows)), allow_nan=False))
    lora = read["rows"][2]
    assert lora["to_full"] == {
        "value": 1 / 3,
        "low": 1 / 3 - 1 / 7,
        "high": 1 / 3 + 1 / 7,
        "standard_error": 1 / 7 / 3,
        "degrees_of_freedom": 4.5,
        "p_value": 0.02,
        "num_seeds": 3,
        "num_clusters": 40,
        "basis": "seeds",
        "unbounded": [],
    }
    assert lora["quality"] == {"value": 0.98, "low": 0.966, "high": 0.994, "unbounded": []}
    assert (lora["name"], lora["values"], lora["seeds"], lora["standing"]) == (
        "lora",
        {"method.name": "lora"},
        [1, 2, 3],
        "good enough",
    )
    assert (lora["adjusted_p"], lora["price"], lora["cost"]["peak_memory_gib"]) == (0.004, 1.25, 4.0)
    assert read["pairs"][0]["difference"]["value"] == -0.02 and read["pairs"][0]["lower"] == "full"
    assert read["missing"] == [{"name": "qlora", "status": "FAILED", "error": None}]
    assert (read["format_version"], read["metric"], read["is_ranked"]) == (1, "loss", True)


def test_no_field_of_a_comparison_or_a_row_is_forgotten() -> None:
    read = as_json(methods())
    assert {field.name for field in fields(Comparison)} <= set(read)
    assert {field.name for field in fields(Row)} <= set(read["rows"][1])
    assert set(read["rows"][1]["cost"]) == {field.name for field in fields(RunCost)}
    described = str(module.__doc__)
    clear = {"title", "verdict", "notes", "num_test_examples", "num_test_tokens", "num_clusters"}
    assert [key for key in read if f"`{key}`" not in described and key not in clear] == []


def test_runs_can_be_found_again() -> None:
    run = as_json(methods())["rows"][2]["runs"][1]
    assert run["folder"] == str(FOLDER / "lora-2.02-2") and run["name"] == "lora-2.02-2"
    assert (run["mlflow_run_id"], run["seed"], run["validation_loss"]) == (f"{2:032x}", 2, 2.25)
    # 10 tokens of 2 nats each and 30 of 2: losses() gives sums of 20 and 60
    assert (run["loss"], run["loss_sum"], run["num_tokens"], run["num_bytes"], run["num_examples"]) == (
        2,
        80,
        40,
        160,
        2,
    )
    assert run["digests"] == {"base": "ab" * 32} and run["choices"] == {"precision": "bf16"}


def test_a_base_row_holds_the_loss_of_the_base_model() -> None:
    (run,) = as_json(methods())["rows"][0]["runs"]
    assert run["loss"] == 3.0
    untrained = replace(base(), runs=(replace(base().runs[0], method="none", base=None, tuned=losses(2.5)),))
    (run,) = as_json(comparison(axes=[], rows=[untrained]))["rows"][0]["runs"]
    assert run["loss"] == 2.5
    unknown = replace(base(), runs=(replace(base().runs[0], base=None),))
    (run,) = as_json(comparison(axes=[], rows=[unknown]))["rows"][0]["runs"]
    assert run["loss"] is None and run["num_tokens"] is None


def test_what_is_not_finite_is_null_and_an_end_without_limit_is_named() -> None:
    odd = row(
        "lora",
        {"train.learning_rate": np.float64(0.5), "data.sources": ({"path": Path("/a")},), "data.max_rows": None},
        math.nan,
        quality=Interval(value=math.nan, low=-math.inf, high=1.25),
        cost=RunCost(train_seconds=math.inf, tokens_per_second=math.nan),
        price=math.nan,
    )
    read = json.loads(json.dumps(as_json(comparison(axes=["a"], rows=[odd])), allow_nan=False))["rows"][0]
    assert read["loss"]["value"] is None
    assert read["quality"] == {"value": None, "low": None, "high": 1.25, "unbounded": ["low"]}
    assert read["values"] == {"train.learning_rate": 0.5, "data.sources": [{"path": "/a"}], "data.max_rows": None}
    assert (read["cost"]["train_seconds"], read["cost"]["tokens_per_second"], read["price"]) == (None, None, None)


def test_reasons_not_to_rank_are_told() -> None:
    read = as_json(replace(methods(), unfair=["Other test sets."], pairs=[]))
    assert (read["is_ranked"], read["unfair"], read["pairs"]) == (False, ["Other test sets."], [])
