"""Mixes of `shape` and columns that can't work are named with their keys, and all others pass."""

import pytest
import yaml

from llmtune.config.data import FilesConfig, RowConfig, SourceConfig
from llmtune.config.row_columns import COLUMN_KEYS, DEFAULT_COLUMNS, as_typed, find_wrong_columns, possible_shapes

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "rows",
    [
        {},
        {"shape": "text", "text_column": "a"},
        {"prompt_column": "a", "completion_column": "b"},
        {"instruction_column": "a", "input_column": "b", "output_column": "c", "system_column": "d"},
        {"messages_column": "a", "tools_column": "b", "system_column": "c"},
        {"system_column": "a"},
        {"text_column": "a", "group_column": "a"},
        {"instruction_column": "input", "input_column": "instruction"},
    ],
)
def test_columns_of_one_shape_pass(rows):
    assert find_wrong_columns(RowConfig(**rows)) == []


@pytest.mark.parametrize(
    ("rows", "problems"),
    [
        (
            {"text_column": "a", "prompt_column": "b"},
            [
                "data.prompt_column=b with data.text_column=a: belong to rows of different shapes (completion, text); "
                "set those of one."
            ],
        ),
        (
            {"shape": "completion", "text_column": "a"},
            ["data.text_column=a: isn't read with data.shape=completion; leave it out, or set data.shape=text."],
        ),
        (
            {"shape": "text", "system_column": "a"},
            ["data.system_column=a: is read only with data.shape=messages or instruction; leave it out."],
        ),
        (
            {"prompt_column": "a", "tools_column": "b"},
            ["data.tools_column=b: is read only with data.shape=messages; leave it out."],
        ),
        (
            {"prompt_column": "a", "completion_column": "a"},
            ["data.prompt_column and data.completion_column: both name the column a; each needs one of its own."],
        ),
        (
            {"output_column": "input"},
            ["data.input_column and data.output_column: both name the column input; each needs one of its own."],
        ),
    ],
)
def test_an_impossible_mix_is_a_sentence(rows, problems):
    assert find_wrong_columns(RowConfig(**rows)) == problems
    assert find_wrong_columns(FilesConfig(**rows)) == problems


def test_a_source_of_a_mixture_is_named_without_the_group():
    (problem,) = find_wrong_columns(SourceConfig(path="x", shape="text", system_column="a"))
    assert problem.startswith("system_column=a: is read only with shape=messages or instruction")


def test_every_column_key_of_the_config_is_known():
    keys = {key for key in RowConfig.__dataclass_fields__ if key.endswith("_column")}
    assert keys == {*DEFAULT_COLUMNS, "group_column"}
    assert {key for keys in COLUMN_KEYS.values() for key in keys} | {"system_column", "tools_column"} == {
        *DEFAULT_COLUMNS
    }


def test_the_shapes_that_rows_may_have():
    assert possible_shapes(RowConfig()) == ("messages", "completion", "instruction", "text")
    assert possible_shapes(RowConfig(tools_column="t")) == ("messages",)
    assert possible_shapes(RowConfig(system_column="s")) == ("messages", "instruction")
    assert possible_shapes(RowConfig(output_column="s")) == ("instruction",)


def test_values_are_typed_as_a_shell_takes_them():
    assert (
        as_typed(RowConfig(), {"prompt_column": "my q", "shape": "text"}) == "'data.prompt_column=my q' data.shape=text"
    )


@pytest.mark.parametrize("column", ["question", "my q", "a: b", "1", "null", "a, b", "}", '"', "é"])
def test_values_are_typed_as_yaml_takes_them(column):
    typed = as_typed(SourceConfig(), {"prompt_column": column})
    assert typed.endswith(" in data.sources")
    assert yaml.safe_load(typed.removesuffix(" in data.sources")) == {"prompt_column": column}
    assert ('"' in typed) == (column not in ("question", "my q", "é"))
