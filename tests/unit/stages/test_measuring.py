"""A model on general text: the same losses as transformers' own, and what is written of them."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune.config.data import FilesConfig
from llmtune.data.preparing.general import prepare_general
from llmtune.data.preparing.prepared import prepare_data
from llmtune.models.precision import Precision
from llmtune.runs.layout import RunFolder
from llmtune.stages import measuring
from llmtune.stages.measuring import general_figures, measure, write_measured

pytestmark = pytest.mark.fast


@pytest.fixture
def context(tiny_model, tmp_path, monkeypatch) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"prompt": "{number} and", "completion": " {number}!"}}\n' for number in range(9)))
    data = prepare_data(FilesConfig(eval_path=str(file), find_near_duplicates=False), tokenizer, "t", tmp_path)
    monkeypatch.setattr(measuring, "attention_for_evaluation", lambda context, model: SimpleNamespace(packed=False))
    return SimpleNamespace(
        config=SimpleNamespace(evaluate=SimpleNamespace(batch_tokens=128, sample_max_new_tokens=4), seed=1),
        data=data,
        general=prepare_general(None, 5, 48, (tokenizer, "t"), tmp_path),
        folder=RunFolder(tmp_path / "run"),
        pad_token_id=0,
        precision=Precision("fp32", "cpu", "test"),
        device=torch.device("cpu"),
        tokenizer=tokenizer,
    )


def loss_by_transformers(model: Any, table: Any) -> float:
    """Mean loss per supervised token, an example at a time."""
    nats = count = 0.0
    for index in range(len(table)):
        ids = torch.from_numpy(table.input_ids(index).astype(np.int64))[None]
        labels = torch.from_numpy(table.labels(index).astype(np.int64))[None]
        with torch.no_grad():
            nats += model(input_ids=ids, labels=labels).loss.item() * int((labels[:, 1:] >= 0).sum())
        count += int((labels[:, 1:] >= 0).sum())
    return nats / count


def test_what_is_forgotten_is_what_transformers_says(context, tiny_model):
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    changed = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in changed.parameters():
            weight.mul_(1.5)
    before, after = measure(context, base, "base", []), measure(context, changed, "tuned", [])
    assert before.general is not None and after.general is not None
    found = general_figures(context.general, after.general, before.general)
    table = context.general.table
    expected = {"base_loss": loss_by_transformers(base, table), "loss": loss_by_transformers(changed, table)}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert abs(expected["loss"] - expected["base_loss"]) > 0.01
    assert found["num_examples"] == 5 and found["num_supervised_tokens"] == sum(table.num_tokens) - 5
    assert found["digest"] == table.tokens_digest() and "5 installed packages" in found["source"]
    assert before.test.loss == pytest.approx(loss_by_transformers(base, context.data.test), rel=1e-5)
    assert "base_loss" not in general_figures(context.general, after.general, None)


def test_each_example_is_written_with_what_it_belongs_to(context, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    found = measure(context, model, "tuned", [])
    write_measured(context, {"tuned": found})
    folder = context.folder.path / "predictions"
    assert {path.name for path in folder.iterdir()} == {"tuned.parquet", "general_tuned.parquet"}
    general = pq.read_table(folder / "general_tuned.parquet").to_pydict()
    assert general["cluster"] == context.general.clusters and len(set(general["cluster"])) == 5
    assert general["num_tokens"] == context.general.table.num_tokens.tolist()
    test = pq.read_table(folder / "tuned.parquet").to_pydict()
    assert test["example_id"] == test["cluster"] == context.data.test.example_ids()
    assert math.fsum(test["loss_sum"]) / sum(test["num_supervised_tokens"]) == pytest.approx(found.test.loss)


def test_without_general_text_nothing_is_said_of_it(context, tiny_model, capsys):
    context.general = None
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    found = measure(context, model, "tuned", [])
    write_measured(context, {"tuned": found})
    assert found.general is None and "general" not in capsys.readouterr().out
    assert [path.name for path in (context.folder.path / "predictions").iterdir()] == ["tuned.parquet"]
