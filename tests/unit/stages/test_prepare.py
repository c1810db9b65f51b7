"""What `prepare` counts and shows, against values worked out by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from llmtune.config.train import TrainConfig
from llmtune.data.encoding.example import TokenizedExample
from llmtune.data.preparing.prepared import PreparedData
from llmtune.data.token_table import TokenTable, TokenTableWriter, token_batch, write_order
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.stages import prepare

pytestmark = pytest.mark.fast


def table(folder: Path, name: str, examples: list[tuple[str, list[int], int]], order: list[int]) -> TokenTable:
    """Examples by place, ids, and how many of them at the end are supervised."""
    tokenized = []
    for _, ids, learnt in examples:
        labels = np.full(len(ids), -100, np.int32)
        labels[len(ids) - learnt :] = ids[len(ids) - learnt :]
        tokenized.append(TokenizedExample(np.array(ids, np.int32), labels, learnt))
    places = [place.rpartition(":") for place, _, _ in examples]
    names = {
        "example_id": [str(number) for number in range(len(examples))],
        "content_hash": [str(number) for number in range(len(examples))],
        "source_path": [path for path, _, _ in places],
        "source_line": [int(line) for _, _, line in places],
    }
    with TokenTableWriter(folder / f"{name}.arrow") as writer:
        if examples:
            writer.write(token_batch(names, tokenized))
    write_order(folder / f"{name}.order.npy", np.array(order, np.int64))
    return TokenTable(folder / f"{name}.arrow", folder / f"{name}.order.npy")


def prepared(folder: Path, train: list[Any], test: list[Any], order: list[int] | None = None) -> PreparedData:
    return PreparedData(
        train=table(folder, "train", train, list(range(len(train))) if order is None else order),
        validation=table(folder, "validation", [], []),
        test=table(folder, "test", test, list(range(len(test)))),
        digest="ab" * 32,
        folder=folder,
        report={},
    )


def of_lengths(*lengths: int) -> list[tuple[str, list[int], int]]:
    return [(f"a.jsonl:{line}", [5] * length, 1) for line, length in enumerate(lengths, start=1)]


def context(**train: Any) -> Any:
    """As far as a plan of steps needs one."""
    sizes = {"micro_batch_size": 2, "gradient_accumulation_steps": 1} | train
    config = SimpleNamespace(seed=0, train=TrainConfig(**sizes), data=SimpleNamespace(max_seq_len=10))
    return SimpleNamespace(config=config, manifest=SimpleNamespace(section=lambda name: {}))


@pytest.mark.parametrize(
    ("lengths", "sizes", "num_tokens", "steps", "mean"),
    [
        # room for 2 x 10 tokens, a step of 2 examples: 5 micro-batches of 16 tokens
        ([8] * 10, {}, [16] * 5, 5, 16 / 20),
        # a step of 4 examples, 2 of 8 tokens fit: the third begins another
        ([8] * 8, {"gradient_accumulation_steps": 2}, [16] * 4, 2, 16 / 20),
        # 4 of 5 tokens fill a micro-batch to the brim; the last step has one example
        ([5] * 9, {"gradient_accumulation_steps": 2}, [20, 20, 5], 3, 45 / 60),
        # a step of 40 tokens is two micro-batches, the last one has one example
        ([5] * 9, {"batch_unit": "tokens", "tokens_per_step": 40}, [20, 20, 5], 2, 45 / 60),
        # longer than half the room: one each
        ([7] * 3, {"micro_batch_size": 1, "gradient_accumulation_steps": 3}, [7] * 3, 1, 7 / 10),
    ],
)
def test_fill_of_packed_micro_batches(tmp_path, lengths, sizes, num_tokens, steps, mean):
    fill = prepare._packing_fill(context(**sizes), prepared(tmp_path, of_lengths(*lengths), []))
    assert fill.num_tokens == num_tokens
    assert fill.micro_batch_tokens == 10 * sizes.get("micro_batch_size", 2)
    assert fill.num_steps == steps
    assert fill.mean == pytest.approx(mean)
    assert fill.filled_with_tokens == ("tokens_per_step" in sizes)


def test_fill_is_told_of_the_first_steps_of_much_data(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_MOST_STEPS", 3)
    fill = prepare._packing_fill(context(), prepared(tmp_path, of_lengths(*[4] * 20), []))
    assert (fill.num_steps, fill.num_tokens) == (3, [8, 8, 8])


def test_fill_with_a_micro_batch_for_each_process(tmp_path, monkeypatch):
    monkeypatch.setattr("llmtune.distributed.num_processes", lambda: 2)
    fill = prepare._packing_fill(context(), prepared(tmp_path, of_lengths(*[4] * 8), []))
    assert (fill.num_steps, fill.num_tokens) == (2, [8] * 4)


@pytest.fixture(scope="session")
def shown_context(tiny_llama) -> Any:
    return SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(tiny_llama))


def shown_of(shown_context, tmp_path, *args: Any) -> list[tuple[str, str]]:
    found = prepare._shown_examples(shown_context, prepared(tmp_path, *args))
    return [(example.split, example.source) for example in found]


def rows(*places: str) -> list[tuple[str, list[int], int]]:
    return [(place, [70, 80, 90], 1) for place in places]


def test_examples_of_different_files_are_shown_and_one_of_the_test_set(shown_context, tmp_path):
    train = rows("a:1", "a:2", "a:3", "a:4", "b:1", "c:1", "d:1")
    assert shown_of(shown_context, tmp_path, train, rows("e:1", "e:2")) == [
        ("train", "a:1"),
        ("train", "b:1"),
        ("train", "c:1"),
        ("test", "e:1"),
    ]


def test_of_one_file_the_first_are_shown(shown_context, tmp_path):
    # in the order of the split, not of the file
    found = shown_of(shown_context, tmp_path, rows("a:1", "a:2", "a:3", "a:4", "a:5"), [], [4, 0, 2, 1])
    assert found == [("train", "a:5"), ("train", "a:1"), ("train", "a:3")]


def test_of_two_files_each_is_shown_before_a_second_of_one(shown_context, tmp_path):
    found = shown_of(shown_context, tmp_path, rows("a:1", "a:2", "a:3", "b:1"), rows("t:1"))
    assert found == [("train", "a:1"), ("train", "b:1"), ("train", "a:2"), ("test", "t:1")]


def test_without_training_data_test_examples_are_shown(shown_context, tmp_path):
    assert shown_of(shown_context, tmp_path, [], rows("t:1", "t:2")) == [("test", "t:1"), ("test", "t:2")]


def test_a_file_far_behind_is_not_looked_for(shown_context, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_MOST_LOOKED_AT", 2)
    found = shown_of(shown_context, tmp_path, rows("a:1", "a:2", "b:1"), [])
    assert found == [("train", "a:1"), ("train", "a:2"), ("train", "b:1")]


def test_a_shown_token_says_its_text_and_whether_it_is_learnt(shown_context, tmp_path):
    tokenizer = shown_context.tokenizer
    ids = [*tokenizer("Say it").input_ids, *tokenizer(" now").input_ids, tokenizer.eos_token_id]
    learnt = 1 + len(tokenizer(" now").input_ids)
    data = prepared(tmp_path, [("a:1", ids, learnt)], [])
    (shown,) = prepare._shown_examples(shown_context, data)
    assert "".join(piece.text for piece in shown.pieces) == "Say it now" + tokenizer.eos_token
    assert "".join(piece.text for piece in shown.pieces if piece.is_trained) == " now" + tokenizer.eos_token
    assert shown.special == frozenset({tokenizer.eos_token})


SOURCES = [{"role": "train", "digest": "t"}, {"role": "eval", "digest": "known"}]


@pytest.mark.parametrize(
    ("trained_on", "num_shared", "told"),
    [
        (SOURCES[:1], 2, True),  # trained without a test file
        ([SOURCES[0], {"role": "eval", "digest": "other"}], 2, True),
        (SOURCES, 2, False),  # they were left out of that training
        (SOURCES[:1], 0, False),
    ],
)
def test_known_test_examples(tmp_path, capsys, trained_on, num_shared, told):
    run = RunFolder(tmp_path)
    Manifest(run.manifest_file).record("data", {"sources": trained_on})
    report = {"overlap": {"exact": num_shared, "normalised": 0, "near": 0, "listed": []}, "sources": SOURCES}
    context: Any = SimpleNamespace(trained_run=run, data=SimpleNamespace(report=report))
    prepare._warn_of_known(context)
    assert ("warning: 2 examples of the data" in capsys.readouterr().out) == told


def test_places_of_rows_stay_out_of_the_manifest():
    report = {"a": {"count": 1, "listed": ["a:1"]}, "b": [{"listed": []}], "c": {"d": {"listed": [], "n": 2}}}
    assert prepare._without_lists(report) == {"a": {"count": 1}, "b": [{"listed": []}], "c": {"d": {"n": 2}}}
