"""What the schema says of a key is what the dataclasses and the config files say."""

from dataclasses import fields
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from llmtune.config.base import Fraction, PositiveInt, Text
from llmtune.config.compose import Composition, compose
from llmtune.config.run import RunConfig
from llmtune.config.schema import Key, default_option, described_keys, groups, keys, shapes_of, shapes_to_choose
from llmtune.config.validate import flatten, to_plain
from llmtune.config.words import choices_of, type_in_words, value_in_words

pytestmark = pytest.mark.fast


def key(name: str) -> Key:
    return next(found for found in described_keys(name.rpartition(".")[0]) if found.name == name)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true or false"),
        (int, "int"),
        (PositiveInt, "int >= 1"),
        (PositiveInt | None, "int >= 1 or null"),
        (Fraction, "number >= 0, < 1"),
        (Annotated[float, Field(gt=0, le=1)], "number > 0, <= 1"),
        (Literal["a", "b"], "one of a, b"),
        (Text | None, "text or null"),
        (tuple[str, ...] | None, "list of text or null"),
        (Literal["all-linear"] | tuple[str, ...], "all-linear or list of text"),
    ],
)
def test_a_type_in_words(annotation: Any, words: str) -> None:
    assert type_in_words(annotation) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (512, "512"),
        (1.0, "1"),
        (0.05, "0.05"),
        (2e-4, "2e-4"),
        (1.5e-5, "1.5e-5"),
        ("cosine", "cosine"),
        (("a", "b"), '["a", "b"]'),
        ("${method.learning_rate}", "that of method.learning_rate"),
    ],
)
def test_a_value_in_words(value: Any, words: str) -> None:
    assert value_in_words(value) == words


def test_choices_are_the_names_that_a_value_may_take() -> None:
    assert choices_of(Literal["a", "b"] | None) == ("a", "b")
    assert choices_of(bool) == ("true", "false")
    assert choices_of(PositiveInt) == choices_of(Text) == ()


def test_every_key_has_a_type_and_a_meaning() -> None:
    assert len(keys()) > 90
    assert [found.name for found in keys() if not found.type or not found.meaning.endswith(".")] == []


def test_a_default_is_what_a_run_gets_where_nothing_is_typed() -> None:
    """Every key of the composed config has the default that the schema says."""
    config = compose(Composition(overrides=["++data.path='x'"]))
    assert isinstance(config, RunConfig)
    composed = flatten(to_plain(config))
    chosen = {"method": config.method.name, "data": config.data.source}
    told = {
        found.name: found.default
        for found in keys()
        if not found.shapes or found.shapes == (chosen[found.name.partition(".")[0]],)
    }
    told |= {"data.path": "x", "train.learning_rate": told["method.learning_rate"]}
    assert told == {name: value_in_words(value) for name, value in composed.items()}


def test_the_learning_rate_is_the_methods() -> None:
    assert key("train.learning_rate").default == "that of method.learning_rate"
    assert key("method.learning_rate").default == "2e-5 (full), 2e-4 (lora, qlora)"


def test_a_key_knows_the_shapes_that_have_it() -> None:
    assert key("method.rank").shapes == ("lora", "qlora")
    assert key("method.quant_type").shapes == ("qlora",)
    assert key("data.path").shapes == ("files",)
    assert key("train.num_epochs").shapes == ()
    assert {found.name for found in keys() if found.names_shape} == {"method.name", "data.source"}
    assert key("data.source").default == "files"


def test_shapes_to_choose_have_an_option() -> None:
    assert set(shapes_to_choose("data")) == {"files", "embedded", "hub", "mixture"}
    assert {"full", "lora", "qlora"} <= set(shapes_to_choose("method")) <= set(shapes_of("method"))
    assert shapes_to_choose("train") == ()


def test_every_group_has_a_default_option() -> None:
    assert [group for group in groups() if not default_option(group)] == ["experiment"]
    assert default_option("tracking") == "mlflow"


def test_described_keys_name_each_key_once() -> None:
    names = [found.name for section in ("", *groups()) for found in described_keys(section)]
    assert len(names) == len(set(names))
    assert set(names) == {found.name for found in keys()}


def test_the_fields_of_each_shape_are_keys() -> None:
    for shape, owner in shapes_of("data").items():
        named = {found.name.partition(".")[2] for found in keys() if shape in found.shapes and found.group == "data"}
        assert named == {field.name for field in fields(owner)}
