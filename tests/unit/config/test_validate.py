"""Every problem of a config is named at once, with the key, what was found and what is allowed."""

import pytest

from llmtune.config.method import FullConfig, QloraConfig
from llmtune.config.validate import flatten, nearest, to_plain, to_run_config
from llmtune.errors import ConfigError

pytestmark = pytest.mark.fast

MODEL = {"name": "tiny", "source": "folder", "path": "tests/assets/tiny_llama"}
DATA = {"source": "files", "path": "examples.jsonl"}


def problems_of(**sections) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        to_run_config({"model": MODEL, "data": DATA, **sections})
    return caught.value.problems


def test_defaults_are_the_documented_ones() -> None:
    config = to_run_config({"model": MODEL, "data": DATA})
    assert (config.method.name, config.train.learning_rate, config.seed) == ("lora", 2e-4, 1)
    assert (config.train.micro_batch_size, config.train.gradient_accumulation_steps) == (4, 2)
    assert (config.data.max_seq_len, config.data.validation_fraction, config.data.test_fraction) == (512, 0.05, 0.1)


def test_the_method_decides_the_shape() -> None:
    full = to_run_config({"model": MODEL, "data": DATA, "method": {"name": "full"}})
    qlora = to_run_config({"model": MODEL, "data": DATA, "method": {"name": "qlora", "rank": 8}})
    assert full.method == FullConfig()
    assert qlora.method == QloraConfig(rank=8)


def test_all_problems_come_at_once() -> None:
    found = problems_of(
        method={"name": "lora", "alhpa": 3, "rank": 0},
        train={"learning_rate": "fast", "schedule": "step"},
        seed=True,
        trian={},
    )
    assert found == [
        "method.rank=0: should be greater than or equal to 1.",
        "method.alhpa: there is no such key. Did you mean method.alpha?",
        "train.learning_rate=fast: should be a valid number.",
        "train.schedule=step: should be 'cosine', 'linear', 'constant' or 'cosine_with_restarts'.",
        "seed=true: should be a valid integer.",
        "trian: there is no such key. Did you mean train?",
    ]


def test_a_key_of_another_method_is_refused_with_what_this_one_has() -> None:
    assert problems_of(method={"name": "full", "rank": 8}) == [
        "method.rank: method=full has no such key. It has: name, learning_rate."
    ]


def test_an_unknown_method_lists_the_known_ones() -> None:
    assert problems_of(method={"name": "dora"}) == [
        "method.name=dora: must be one of 'full', 'lora', 'qlora'.",
    ]


def test_a_number_that_is_text_is_refused() -> None:
    assert problems_of(method={"name": "lora", "rank": "8"}) == ["method.rank=8: should be a valid integer."]


def test_infinite_values_are_refused() -> None:
    assert problems_of(train={"learning_rate": float("inf")}) == [
        "train.learning_rate=Infinity: should be a finite number."
    ]


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"data": {"source": "files"}}, "data.path: is missing"),
        ({"data": {"source": "hub"}}, "data.id: is missing"),
        ({"model": {"name": "hub", "source": "hub"}}, "model.id: is missing"),
        ({"model": {"name": "folder", "source": "folder"}}, "model.path: is missing"),
        ({"model": {**MODEL, "id": "a/b"}}, "model.id and model.revision belong to model=hub"),
        ({"model": {"name": "x", "source": "hub", "id": "a/b", "path": "y"}}, "model.path=y: belongs to model=folder"),
        (
            {"model": {"name": "x", "source": "hub", "id": "a/b", "trust_remote_code": True, "revision": "main"}},
            "model.trust_remote_code=true: set model.revision to the full 40-digit commit",
        ),
        ({"data": {**DATA, "validation_fraction": 0.6, "test_fraction": 0.5}}, "add up to 1.1 and leave nothing"),
        ({"data": {**DATA, "test_fraction": 0.0}}, "data.test_fraction=0.0: leaves no test set"),
        (
            {"evaluate": {"general_path": "a.txt", "num_general_examples": 0}},
            "evaluate.general_path=a.txt: isn't read with evaluate.num_general_examples=0",
        ),
        (
            {"data": {**DATA, "validation_fraction": 0.0}, "train": {"early_stopping_patience": 2}},
            "train.early_stopping_patience=2: needs validation examples",
        ),
        ({"train": {"max_steps": 10, "warmup_steps": 10}}, "train.warmup_steps=10: must be below train.max_steps=10"),
        (
            {"train": {"batch_unit": "tokens"}},
            "train.batch_unit=tokens: needs train.tokens_per_step; set it to data.max_seq_len=512 or more.",
        ),
        (
            {"train": {"tokens_per_step": 4096}},
            "train.tokens_per_step=4096: belongs to train.batch_unit=tokens; set that, or leave it out.",
        ),
        (
            {"train": {"batch_unit": "tokens", "tokens_per_step": 511}},
            "train.tokens_per_step=511: is below data.max_seq_len=512, so a long example would fit in no step",
        ),
        ({"train": {"batch_unit": "tokens", "tokens_per_step": 0}}, "train.tokens_per_step=0: should be greater than"),
        ({"hardware": {"kind": "cpu", "num_processes": 2}}, "hardware=cpu is one process"),
        ({"hardware": {"kind": "cpu"}, "train": {"precision": "fp16"}}, "train.precision=fp16: needs a GPU"),
        (
            {"train": {"master_dtype": "bf16", "precision": "fp32"}},
            "train.master_dtype=bf16: needs bf16 products too, and train.precision is fp32; set train.precision=bf16",
        ),
        (
            {"train": {"master_dtype": "bf16", "precision": "fp16"}},
            "train.master_dtype=bf16: needs bf16 products too, and train.precision is fp16; set train.precision=bf16",
        ),
        ({"export": {"formats": ["gguff"]}}, "export.formats: there is no format gguff. Did you mean gguf?"),
        ({"method": {"name": "full"}, "export": {"formats": ["adapter"]}}, "adapter can't be had from method=full"),
        ({"export": {"max_shard_size": "big"}}, "export.max_shard_size=big: write a size such as 5GB"),
        ({"method": {"name": "full"}, "tracking": {"log_model": "adapter"}}, "method=full trains no adapter"),
        ({"export": {"formats": ["adapter"]}, "tracking": {"log_model": "merged"}}, "tracking.log_model=merged: needs"),
        ({"tracking": {"ui_port": 70000}}, "tracking.ui_port=70000: a port is between 1 and 65535."),
    ],
)
def test_impossible_combinations_are_refused(sections, problem) -> None:
    assert any(problem in found for found in problems_of(**sections))


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_weights_may_train_in_bf16_beside_products_that_are(precision) -> None:
    train = {"master_dtype": "bf16", "precision": precision}
    assert to_run_config({"model": MODEL, "data": DATA, "train": train}).train.master_dtype == "bf16"


def test_weights_that_were_trained_in_bf16_may_be_measured_in_another_precision() -> None:
    content = {"model": MODEL, "data": DATA, "train": {"master_dtype": "bf16", "precision": "fp32"}}
    to_run_config(content, begun=True)
    to_run_config({**content, "source_run": "runs/earlier"})
    with pytest.raises(ConfigError, match="needs bf16 products"):  # control
        to_run_config(content)


def test_steps_of_tokens_hold_the_longest_example() -> None:
    config = to_run_config({"model": MODEL, "data": DATA, "train": {"batch_unit": "tokens", "tokens_per_step": 512}})
    assert (config.train.batch_unit, config.train.tokens_per_step) == ("tokens", 512)


def test_measuring_longer_examples_than_a_run_trained_on_is_allowed() -> None:
    longer = {"data": {**DATA, "max_seq_len": 1024}, "train": {"batch_unit": "tokens", "tokens_per_step": 512}}
    assert to_run_config({"model": MODEL, **longer}, begun=True).data.max_seq_len == 1024


def test_several_impossible_combinations_come_together() -> None:
    found = problems_of(hardware={"kind": "cpu", "num_processes": 2}, export={"formats": ["x", "y"]})
    assert len(found) == 3


def test_plain_form_reads_back_equal() -> None:
    config = to_run_config({"model": MODEL, "data": DATA, "method": {"name": "lora", "target_modules": ["q_proj"]}})
    assert to_run_config(to_plain(config)) == config


def test_flatten_joins_keys_with_dots() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1]}) == {"a.b.c": 1, "a.d": None, "e": [1]}


def test_nearest_says_nothing_when_nothing_is_near() -> None:
    assert nearest("xyz", ["train", "model"]) == ""
    assert nearest("modle", ["train", "model"]) == " Did you mean model?"


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        (
            [{"path": "a"}, {"path": "b", "wieght": 0.5}],
            "data.sources[1].wieght: there is no such key. Did you mean data.sources[1].weight?",
        ),
        ([{"path": "a", "weight": 0}], "data.sources[0].weight=0: should be greater than 0."),
        ([{"path": "a", "shape": "chat"}], "data.sources[0].shape=chat: should be 'auto', 'text', 'completion',"),
        ([{"path": "a"}, "b.jsonl"], "data.sources[1]=b.jsonl: should be a mapping such as {path: b.jsonl}."),
        ("a.jsonl", "data.sources=a.jsonl: should be a list of mappings such as [{path: a.jsonl, weight: 2}]."),
        ({"path": "a"}, 'data.sources={"path": "a"}: should be a list of mappings such as'),
    ],
)
def test_what_is_wrong_with_a_source_names_the_source(sources, problem) -> None:
    (found,) = problems_of(data={"source": "mixture", "sources": sources})
    assert found.startswith(problem)


def test_a_key_that_is_like_none_lists_those_of_a_source() -> None:
    (found,) = problems_of(data={"source": "mixture", "sources": [{"path": "a", "xyz": 1}]})
    assert found.startswith("data.sources[0].xyz: there is no such key. Known here: shape, text_column, ")
