"""Rows of each shape become records as they stand; which shape was taken is said, and an unclear one refused."""

import pytest

from llmtune.config.data import RowConfig, SourceConfig
from llmtune.config.row_columns import EvalRowConfig
from llmtune.data.reading.blocks import NoRow, Row
from llmtune.data.records import Record
from llmtune.data.shaping.forms import SHAPES_IN_WORDS
from llmtune.data.shaping.outcome import Unusable
from llmtune.data.shaping.shapes import RowShaper, as_row, shape_of, why_shape

pytestmark = pytest.mark.fast

HALF_PAIR = "SECRET \ud83d"
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, None, {"y": 2.5}]}}}


def shaped(content, rows=None):
    return RowShaper(rows or RowConfig(), "F")(Row(7, content))


def reason(content, rows=None):
    found = shaped(content, rows)
    assert isinstance(found, Unusable), found
    assert found.line == 7
    assert "SECRET" not in found.reason
    assert found.is_mistake
    return found.reason


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ({"text": " t\r\n\x00e\u0301 "}, {"text": " t\r\n\x00e\u0301 "}),
        ({"content": "t", "id": 3}, {"text": "t"}),
        ({"text": None, "content": "t"}, {"text": "t"}),
        ({"text": "", "content": "t"}, {"text": "t"}),
        ({"text": "t", "prompt": None, "completion": None}, {"text": "t"}),
        ({"text": "t", "prompt": "p", "completion": ""}, {"text": "t"}),
        ({"prompt": "", "completion": " c"}, {"prompt": "", "completion": " c"}),
        ({"prompt": "p", "completion": "c", "system": "s"}, {"prompt": "p", "completion": "c"}),
        (
            {"instruction": "i", "input": "x ", "output": "o", "system": "s"},
            {"prompt": "i\n\nx ", "completion": "o", "is_instruction": True, "system": "s"},
        ),
        ({"instruction": "i", "input": "", "output": "o"}, {"prompt": "i", "completion": "o", "is_instruction": True}),
        ({"instruction": "", "input": "x", "output": "o"}, {"prompt": "x", "completion": "o", "is_instruction": True}),
        (
            {"instruction": "i", "input": None, "output": "o", "system": " "},
            {"prompt": "i", "completion": "o", "is_instruction": True},
        ),
        ({"instruction": "i", "output": "o"}, {"prompt": "i", "completion": "o", "is_instruction": True}),
    ],
)
def test_a_row_becomes_its_record(content, fields):
    assert shaped(content) == Record("F", 7, **fields)


@pytest.mark.parametrize(
    ("rows", "content", "fields"),
    [
        ({"text_column": "body"}, {"body": "b", "text": "t"}, {"text": "b"}),
        ({"shape": "text"}, {"instruction": "i", "output": "o", "text": "t"}, {"text": "t"}),
        ({"shape": "completion", "prompt_column": "q"}, {"q": "p", "completion": "c", "text": "t"}, {"prompt": "p"}),
        ({"completion_column": "chosen"}, {"prompt": "p", "chosen": "c", "rejected": "r"}, {"completion": "c"}),
        ({"input_column": "context"}, {"instruction": "i", "context": "x", "output": "o"}, {"prompt": "i\n\nx"}),
        ({"instruction_column": "q", "system_column": "s"}, {"q": "i", "output": "o", "s": "S"}, {"system": "S"}),
    ],
)
def test_columns_that_are_named_decide_the_shape(rows, content, fields):
    found = shaped(content, RowConfig(**rows))
    assert {name: getattr(found, name) for name in fields} == fields


def test_a_system_column_leaves_the_shapes_that_have_one():
    rows = RowConfig(system_column="s")
    assert shaped({"instruction": "i", "output": "o", "text": "t", "s": "S"}, rows).system == "S"
    assert reason({"text": "SECRET", "s": "S"}, rows).startswith("the row has none of `instruction` and `output`, or")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"text": 3}, "`text` must be text, not a number"),
        ({"text": True}, "`text` must be text, not true or false"),
        ({"text": b"SECRET"}, "`text` must be text, not bytes"),
        ({"text": {"SECRET": 1}}, "`text` must be text, not an object"),
        ({"text": ["SECRET"]}, "`text` is a list; conversations belong in `messages`, other text in a string"),
        ({"text": None}, "`text` is null; give it text or leave the row out"),
        ({"text": None, "content": None}, "`text` is null; give it text or leave the row out"),
        ({"content": float("nan")}, "`content` is NaN; give it text or leave the row out"),
        ({"text": HALF_PAIR}, "`text` holds half of a surrogate pair (such as \\ud83d alone), which isn't a character"),
        ({"prompt": "SECRET", "completion": None}, "`completion` is null; give it text or leave the row out"),
        ({"prompt": 1, "completion": "SECRET"}, "`prompt` must be text, not a number"),
        ({"prompt": "SECRET"}, "`prompt` stands without `completion`; give both"),
        ({"completion": "SECRET"}, "`completion` stands without `prompt`; give both"),
        ({"instruction": "SECRET", "input": "x"}, "`instruction` stands without `output`; give both"),
        ({"instruction": "SECRET", "input": 3, "output": "o"}, "`input` must be text, not a number"),
        ({"instruction": "SECRET", "system": [], "output": "o"}, "`system` is a list; conversations belong in"),
        (["SECRET"], f"a row must be an object with {SHAPES_IN_WORDS}, this is a list"),
        ("SECRET", f"a row must be an object with {SHAPES_IN_WORDS}, this is text"),
        (None, f"a row must be an object with {SHAPES_IN_WORDS}, this is null"),
        ({"instruction": "i", "output": "o", "text": "t"}, "set data.shape=instruction or data.shape=text"),
        ({"messages": [], "prompt": "i", "completion": "o"}, "set data.shape=messages or data.shape=completion"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_and_not_quoted(content, problem):
    assert problem in reason(content)


@pytest.mark.parametrize(
    ("content", "mapping"),
    [
        ({"question": "q", "answer": "a"}, "data.prompt_column=question data.completion_column=answer"),
        ({"Q": "q", "A": "a"}, "data.prompt_column=Q data.completion_column=A"),
        ({"query": "q", "response": "a"}, "data.prompt_column=query data.completion_column=response"),
        ({"context": "q", "response": "a"}, "data.prompt_column=context data.completion_column=response"),
        ({"input": "q", "output": "a"}, "data.prompt_column=input data.completion_column=output"),
        ({"prompt": "q", "response": "a"}, "data.completion_column=response"),
        ({"Prompt": "q", "Completion": "a"}, "data.prompt_column=Prompt data.completion_column=Completion"),
        ({"dialogue": "q", "summary": "a"}, "data.prompt_column=dialogue data.completion_column=summary"),
        ({"instruction": "q", "response": "a"}, "data.output_column=response"),
        (
            {"instruction": "q", "context": "c", "response": "a", "category": "k"},
            "data.input_column=context data.output_column=response",
        ),
        (
            {"system_prompt": "s", "question": "q", "response": "a"},
            "data.instruction_column=question data.output_column=response data.system_column=system_prompt",
        ),
        ({"TEXT": "t"}, "data.text_column=TEXT"),
        ({"dialogue": "t", "id": 3}, "data.text_column=dialogue"),
        ({"dialogue": [{"role": "user"}]}, "data.messages_column=dialogue"),
        ({"Messages": [{"role": "user"}], "question": "q", "answer": "a"}, "data.messages_column=Messages"),
        ({"the question": "t", "Output Text": "a", "Input Text": "q"}, "'data.prompt_column=Input Text' "),
        ({"question": "q", "answers": {"a": 1}}, "data.text_column=COLUMN or data.prompt_column=COLUMN "),
        ({"foo": "t"}, "data.text_column=COLUMN or data.prompt_column=COLUMN data.completion_column=COLUMN"),
    ],
)
def test_columns_of_other_names_are_refused_with_the_mapping_to_write(content, mapping):
    found = reason(content)
    assert found.startswith(f"the row has none of {SHAPES_IN_WORDS}; ")
    assert mapping in found
    if "COLUMN" not in mapping and "'" not in mapping:
        assert found.endswith(f"set {mapping}")
        values = dict(word.removeprefix("data.").split("=") for word in mapping.split())
        if all(isinstance(value, str) for value in content.values()):
            assert isinstance(shaped(content, RowConfig(**values)), Record)


@pytest.mark.parametrize(
    ("content", "mapping"),
    [
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "data.completion_column=chosen"),
        (
            {"question": "p", "chosen": "c", "rejected": "r"},
            "data.prompt_column=question data.completion_column=chosen",
        ),
        ({"chosen": "c", "rejected": "r"}, "data.text_column=chosen"),
        ({"prompt": "p", "chosen": [{}], "rejected": [{}]}, "data.messages_column=chosen"),
    ],
)
def test_a_preference_pair_is_told_that_one_answer_is_learnt(content, mapping):
    assert reason(content) == f"the row is a preference pair, of which only one answer is learnt; set {mapping}"


@pytest.mark.parametrize(
    ("rows", "content", "problem"),
    [
        ({"shape": "text"}, {"body": "SECRET"}, "the row has no `text` or `content`; set data.text_column=COLUMN"),
        ({"text_column": "b"}, {"text": "SECRET"}, "the row has no `b`, which data.text_column=b names"),
        ({"prompt_column": "q"}, {"q": "SECRET"}, "the row has no `completion`; set data.completion_column=COLUMN"),
        ({"shape": "messages"}, {"text": "SECRET"}, "the row has no `messages` or `conversations` or `conversation`;"),
        ({"text_column": "b"}, {"b": None}, "`b` is null; give it text or leave the row out"),
        ({"text_column": "b"}, ["SECRET"], "a row must be an object with `b`, this is a list"),
        ({"group_column": "g"}, {"text": "SECRET"}, "the row has no `g`, which data.group_column=g names"),
        ({"group_column": "g"}, {"text": "t", "g": ["SECRET"]}, "`g` must be text or a number, not a list"),
        ({"group_column": "g"}, {"text": "t", "g": False}, "`g` must be text or a number, not true or false"),
        ({"group_column": "g"}, {"text": "t", "g": float("nan")}, "`g` must be text or a number, not NaN"),
        ({"group_column": "g"}, {"text": "t", "g": HALF_PAIR}, "`g` holds half of a surrogate pair"),
    ],
)
def test_what_named_columns_lack_is_said_with_the_key(rows, content, problem):
    assert reason(content, RowConfig(**rows)).startswith(problem)


def test_in_a_mixture_the_mapping_is_that_of_its_yaml():
    rows = SourceConfig(path="a.jsonl")
    assert reason({"Q": "q", "A": "a"}, rows).endswith("set {prompt_column: Q, completion_column: A} in data.sources")
    assert "set {shape: instruction} in data.sources or {shape: text} in data.sources" in reason(
        {"instruction": "i", "output": "o", "text": "t"}, rows
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"text": ""}, "empty text"),
        ({"content": " \n"}, "empty content"),
        ({"prompt": "p", "completion": "\t"}, "empty completion"),
        ({"instruction": "i", "output": ""}, "empty output"),
        ({"text": "", "content": " "}, "empty content"),
    ],
)
def test_an_empty_answer_is_skipped_by_right(content, why):
    assert shaped(content) == Unusable(7, why, is_mistake=False)


@pytest.mark.parametrize(
    ("value", "group"),
    [("a/b", "a/b"), (3, "3"), (3.0, "3"), (2.5, "2.5"), (float("inf"), "inf"), (None, None), ("", None), (0, "0")],
)
def test_a_group_is_text_whatever_its_type(value, group):
    assert shaped({"text": "t", "g": value}, RowConfig(group_column="g")).group == group


def test_what_is_no_row_passes_through():
    shaper, record = RowShaper(RowConfig(), "F"), Record("G", 3, text="t")
    assert shaper(record) is record
    assert shaper(NoRow(2, "not valid JSON")) == Unusable(2, "not valid JSON", is_mistake=True)
    assert shaper(NoRow(2, "blank line", is_mistake=False)) == Unusable(2, "blank line", is_mistake=False)


def test_columns_that_hold_something_and_are_not_read_are_noted():
    shaper = RowShaper(RowConfig(group_column="doc"), "F")
    shaper(Row(1, {"text": "t", "id": None, "doc": 1, "content": None, "prompt": None}))
    assert shaper.unread_columns == set()
    shaper(Row(2, {"text": "t", "id": 3, "doc": 1, "content": "c", "prompt": None}))
    shaper(Row(3, {"prompt": "p", "completion": "c", "system": "s", "doc": 1}))
    assert shaper.unread_columns == {"id", "content", "system"}
    shaper(Row(4, {"text": "t", "doc": 1, "\ud83d" + "x" * 100: 2}))
    assert shaper.unread_columns == {"id", "content", "system", "?" + "x" * 79}


def test_names_that_never_repeat_do_not_fill_the_memory():
    shaper = RowShaper(RowConfig(), "F")
    assert all(isinstance(shaper(Row(n, {"text": "t", f"id {n}": 1})), Record) for n in range(1500))
    assert len(shaper.unread_columns) == 200
    assert len(shaper._layouts) <= 1000


def test_which_shape_was_taken_and_why_is_said():
    shaper = RowShaper(RowConfig(), "F")
    for number in range(1000):
        shaper(Row(number, {"content" if number % 10 == 0 else "text": "t"}))
    assert why_shape(shaper.columns, RowConfig()) == "900 rows have `text` and 100 `content`"
    shaper(Row(1, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}))
    shaper(Row(2, {"text": ""}))
    assert why_shape(shaper.columns, RowConfig()) == "900 rows have `text`, 100 `content` and 1 `messages`"
    assert why_shape({"`messages`": 5}, RowConfig()) == "every row has `messages`"
    assert why_shape({"`text`": 5}, RowConfig(shape="text")) == "data.shape=text; every row has `text`"
    mapped = RowConfig(prompt_column="q", completion_column="a")
    assert why_shape({}, mapped) == "data.prompt_column=q data.completion_column=a"
    assert why_shape({"`text`": 1, "`content`": 1}, RowConfig()) == "1 row has `content` and 1 `text`"
    assert why_shape({}, RowConfig()) == "the source itself gives the examples"


@pytest.mark.parametrize(
    ("record", "shape"),
    [
        (Record("F", 7, text="t"), "text"),
        (Record("F", 7, prompt="p", completion="c"), "prompt and completion"),
        (Record("F", 7, prompt="p", completion="c", is_instruction=True, system="s"), "instruction"),
        (
            Record(
                "F",
                7,
                messages=(
                    {"role": "user", "content": "q", "name": "n"},
                    {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": [CALL]},
                    {"role": "tool", "content": "{}", "tool_call_id": "1"},
                ),
                tools=({"name": "f", "parameters": {"default": None}},),
            ),
            "messages",
        ),
    ],
)
def test_a_record_is_read_back_from_its_row(record, shape):
    assert shape_of(record) == shape
    assert shaped(as_row(record)) == record


def test_a_records_group_is_read_back_where_it_is_named():
    record = Record("F", 7, text="t", group="g")
    assert shaped(as_row(record), RowConfig(group_column="group")) == record
    assert shaped(as_row(record)) == Record("F", 7, text="t")


QA = {"question": "SECRET", "answer": "SECRET"}
BOTH = {"text": "SECRET", "prompt": "SECRET", "completion": "SECRET"}


@pytest.mark.parametrize(
    ("rows", "columns", "shape"),
    [
        (
            SourceConfig(path="x"),
            "set {prompt_column: question, completion_column: answer} in data.sources",
            "set {shape: completion} in data.sources or {shape: text} in data.sources",
        ),
        (
            EvalRowConfig(keys_in="sources"),
            "set {prompt_column: question, completion_column: answer} in every one of data.sources, or rename the test "
            "file's columns",
            "set {shape: completion} in every one of data.sources or {shape: text} in every one of data.sources, or "
            "rename the test file's columns",
        ),
        (
            EvalRowConfig(keys_in="nowhere"),
            "rename `question` to `prompt` and `answer` to `completion` in the test file",
            "give the test file the columns of one of them",
        ),
        (
            EvalRowConfig(),
            "set data.prompt_column=question data.completion_column=answer",
            "set data.shape=completion or data.shape=text",
        ),
    ],
)
def test_what_to_type_is_what_there_is_where_the_source_stands(rows, columns, shape):
    assert reason(QA, rows).endswith(f"; {columns}")
    assert reason(BOTH, rows).endswith(f"; {shape}")


def test_rows_of_a_test_file_need_no_group():
    named = {"group_column": "g", "path": "x"}
    assert "which {group_column: g} in data.sources names" in reason({"text": "SECRET"}, SourceConfig(**named))
    rows = EvalRowConfig(group_column="g", keys_in="sources")
    assert shaped({"text": "t"}, rows).group is None
    assert shaped({"text": "t", "g": 3}, rows).group == "3"
    assert reason({"text": "SECRET", "g": ["SECRET"]}, rows).startswith("`g` must be text")
