"""Conversations in every spelling become turns of one spelling; what can't is named by turn."""

import json

import pytest

from llmtune.config.data import RowConfig
from llmtune.data.reading.blocks import Row
from llmtune.data.records import Record
from llmtune.data.shaping.outcome import Unusable
from llmtune.data.shaping.shapes import RowShaper

pytestmark = pytest.mark.fast

ASKED = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def made_call(arguments, **more):
    return {**more, "type": "function", "function": {"name": "f", "arguments": arguments}}


def shaped(turns, column="messages", **more):
    return RowShaper(RowConfig(), "F")(Row(7, {column: turns, **more}))


def turns_of(turns, column="messages", **more):
    found = shaped(turns, column, **more)
    assert isinstance(found, Record), found
    return list(found.messages)


def reason(turns, column="messages", **more):
    found = shaped(turns, column, **more)
    assert isinstance(found, Unusable), found
    assert found.is_mistake
    assert "SECRET" not in found.reason
    return found.reason


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize("write", [lambda turns: turns, json.dumps, tuple])
def test_each_column_and_json_text_are_read(column, write):
    assert turns_of(write([ASKED, SAID]), column) == [ASKED, SAID]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, name) for name in ("system", "developer", "user", "assistant", "tool")),
        ("human", "user"),
        *((name, "assistant") for name in ("gpt", "chatgpt", "bing", "bard", "model")),
        *((name, "tool") for name in ("function", "observation", "tool_response", "function_response")),
    ],
)
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value"), ("from", "content"), ("role", "value")])
def test_roles_of_both_spellings(name, role, keys):
    turn = dict(zip(keys, (name, " x\n é"), strict=True))
    assert turns_of([ASKED, turn, SAID]) == [ASKED, {"role": role, "content": " x\n é"}, SAID]


def test_null_keys_of_a_turn_are_as_if_absent():
    nulls = dict.fromkeys(("from", "value", "name", "tool_calls", "function_call", "thinking", "tool_call_id", "odd"))
    shaper = RowShaper(RowConfig(), "F")
    found = shaper(Row(7, {"messages": [ASKED | nulls, SAID | nulls]}))
    assert found.messages == (ASKED, SAID)
    assert shaper.unread_columns == set()


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": " a"}, {"type": "text", "text": "b\n", "image_url": None}]
    assert turns_of([ASKED | {"content": parts}, SAID])[0] == {"role": "user", "content": " ab\n"}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept(key):
    assert turns_of([ASKED, SAID | {key: " r"}])[1] == SAID | {"reasoning_content": " r"}
    assert turns_of([ASKED, SAID | {key: ""}])[1] == SAID


def test_other_turns_have_no_reasoning_and_the_first_spelling_counts():
    shaper = RowShaper(RowConfig(), "F")
    found = shaper(
        Row(7, {"messages": [ASKED | {"thinking": "t"}, SAID | {"reasoning_content": "r", "thinking": "t"}]})
    )
    assert found.messages == (ASKED, SAID | {"reasoning_content": "r"})
    assert shaper.unread_columns == {"messages.thinking"}


@pytest.mark.parametrize(
    ("given", "calls"),
    [
        ({"tool_calls": [made_call({"x": 1}, id="c1")]}, [made_call({"x": 1}, id="c1")]),
        ({"tool_calls": [made_call('{"x": [1, "é"]}')]}, [made_call({"x": [1, "é"]})]),
        ({"tool_calls": json.dumps([made_call({})])}, [made_call({})]),
        ({"tool_calls": [{"name": "f", "arguments": None}] * 2}, [made_call({})] * 2),
        ({"tool_calls": [{"function": {"name": "f"}, "type": None, "id": None}]}, [made_call({})]),
        ({"function_call": {"name": "f", "arguments": '{"x": 1}'}}, [made_call({"x": 1})]),
    ],
)
def test_calls_become_objects(given, calls):
    assert turns_of([ASKED, {"role": "assistant", "content": None} | given]) == [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]


@pytest.mark.parametrize("role", ["function_call", "tool_call"])
def test_a_sharegpt_call_is_the_assistants_and_may_stand_alone(role):
    value = json.dumps({"name": "f", "arguments": {"x": 1}})
    answer = {"role": "assistant", "content": "", "tool_calls": [made_call({"x": 1})]}
    turns = [{"from": "human", "value": "q"}, {"from": role, "value": value}]
    assert turns_of(turns, "conversations") == [ASKED, answer]


def test_tool_turns_keep_their_call_and_name():
    turn = {"role": "tool", "content": "{}", "tool_call_id": "c1", "name": "f"}
    assert turns_of([ASKED, turn, SAID])[1] == turn
    assert turns_of([ASKED, turn | {"role": "function"}, SAID])[1] == turn


def test_unknown_keys_of_a_turn_are_kept_out_and_noted():
    shaper = RowShaper(RowConfig(), "F")
    call = made_call({}, index=0) | {"function": {"name": "f", "strict": True}}
    said = SAID | {"weigh": 0, "weight": 1, "tool_calls": [call], "function_call": {"name": "g"}}
    found = shaper(Row(7, {"conversation": [ASKED | {"from": "human"}, said]}))
    assert found.messages == (ASKED, SAID | {"tool_calls": [made_call({})]})
    names = ("weigh", "function_call", "from", "tool_calls.index", "tool_calls.strict")
    assert shaper.unread_columns == {f"conversation.{name}" for name in names}


@pytest.mark.parametrize(("weight", "named"), [(0, "zero"), (0.0, "zero"), (False, "zero"), (0.5, "other than one")])
def test_an_answer_that_is_not_to_be_learnt_is_refused(weight, named):
    found = reason([ASKED, SAID, ASKED, SAID | {"weight": weight}])
    assert found.startswith("turn 4 of `messages` has a `weight` ")
    assert named in found and found.endswith("set data.on_bad_record=skip")


@pytest.mark.parametrize("weight", [1, 1.0, None])
def test_an_answer_of_full_weight_is_learnt_and_a_question_may_weigh_nothing(weight):
    shaper = RowShaper(RowConfig(), "F")
    found = shaper(Row(7, {"messages": [ASKED | {"weight": 0}, SAID | {"weight": weight}]}))
    assert (found.messages, shaper.unread_columns) == ((ASKED, SAID), set())


def test_what_a_template_decides_is_left_to_it():
    turns = [ASKED, ASKED, {"role": "system", "content": "s"}, SAID, SAID, {"role": "tool", "content": ""}, ASKED]
    assert turns_of(turns) == turns


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([ASKED, ASKED], "conversation without an assistant turn"),
        ([{"role": "system", "content": "s"}], "conversation without an assistant turn"),
        ([ASKED, SAID | {"content": " "}], "conversation in which the assistant says nothing"),
    ],
)
def test_a_conversation_without_an_answer_is_skipped_by_right(turns, why):
    assert shaped(turns) == Unusable(7, why, is_mistake=False)


TURN_1, TURN_2 = "turn 1 of `messages` ", "turn 2 of `messages` "
NO_JSON = "is text that isn't JSON; write it with a JSON writer"


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        (None, "`messages` is null; give it turns or leave the row out"),
        ([], "`messages` is empty"),
        ("", "`messages` is empty"),
        (5, "`messages` must be a list of turns, not a number"),
        ('{"SECRET": 1}', "`messages` must be a list of turns, not an object"),
        ("[{'role': 'SECRET'}]", "`messages` must be a list of turns or its JSON text; this is text that isn't JSON"),
        ("[" * 100_000, "`messages` must be a list of turns or its JSON text; this is text that isn't JSON"),
        (["SECRET"], TURN_1 + "must be an object with `role` and `content`, not text"),
        ([SAID, ASKED], "the first turn of `messages` is the assistant's; put a user turn before it"),
        ([ASKED, {"content": "SECRET"}], TURN_2 + "has no `role` among system, developer, user, assistant, tool"),
        ([ASKED, SAID | {"role": "SECRET"}], TURN_2 + "has no `role` among system, developer, user, assistant, tool"),
        ([ASKED, SAID | {"role": ["x"]}], TURN_2 + "has no `role` among system, developer, user, assistant, tool"),
        (
            [{"from": "SECRET", "value": "x"}],
            TURN_1 + "has no `from` among system, human, gpt, function_call, observation",
        ),
        ([ASKED, {"role": "assistant"}], TURN_2 + "has no `content`"),
        ([{"from": "human"}], TURN_1 + "has no `value`"),
        ([{"from": "human", "value": None}], TURN_1 + "has no `value`"),
        ([ASKED | {"content": 5}], TURN_1 + "has a `content` that must be text, not a number"),
        ([{"from": "human", "value": {}}], TURN_1 + "has a `value` that must be text, not an object"),
        ([ASKED | {"content": "SECRET \ud83d"}], TURN_1 + "has a `content` that holds half of a surrogate pair"),
        (
            [ASKED | {"content": ["SECRET"]}],
            TURN_1 + "has a `content` whose part 1 must be an object with `type` and `text`, not text",
        ),
        (
            [ASKED | {"content": [{"type": "image_url"}]}],
            TURN_1 + "has a `content` whose part 1 is of the type image_url; only text is learnt",
        ),
        (
            [ASKED | {"content": [{"type": "text", "text": ""}, {"type": ["SECRET"]}]}],
            TURN_1 + "has a `content` whose part 2 is of another type; only text is learnt",
        ),
        (
            [ASKED | {"content": [{"type": "text", "text": None}]}],
            TURN_1 + "has a `content` whose part 1 has a `text` that is null",
        ),
        ([ASKED | {"name": 3}, SAID], TURN_1 + "has a `name` that must be text, not a number"),
        ([ASKED, SAID | {"thinking": []}], TURN_2 + "has a `thinking` that is a list"),
        (
            [ASKED | {"tool_calls": [made_call({})]}],
            TURN_1 + "has `tool_calls`, which only the assistant's turns can have",
        ),
        ([ASKED, SAID | {"tool_calls": "SECRET"}], TURN_2 + f"has a `tool_calls` that {NO_JSON}"),
        (
            [ASKED, SAID | {"tool_calls": 3}],
            TURN_2 + "has a `tool_calls` with a call that must be an object, not a num",
        ),
        ([ASKED, SAID | {"tool_calls": [{"id": "x"}]}], TURN_2 + "has a `tool_calls` with a call that has no `name`"),
        (
            [ASKED, SAID | {"tool_calls": [{"type": "custom", "name": "SECRET"}]}],
            TURN_2 + "has a `tool_calls` with a call of another `type` than function",
        ),
        (
            [ASKED, SAID | {"tool_calls": [{"function": "SECRET"}]}],
            TURN_2 + "has a `tool_calls` whose `function` must be an object, not text",
        ),
        (
            [ASKED, SAID | {"tool_calls": [made_call({}, id=3)]}],
            TURN_2 + "has a `tool_calls` whose `id` must be text, not a number",
        ),
        (
            [ASKED, SAID | {"tool_calls": [made_call("SECRET")]}],
            TURN_2 + f"has a `tool_calls` whose `arguments` {NO_JSON}",
        ),
        (
            [ASKED, SAID | {"tool_calls": [made_call('{"x": NaN}')]}],
            TURN_2 + f"has a `tool_calls` whose `arguments` {NO_JSON}",
        ),
        (
            [ASKED, SAID | {"tool_calls": [made_call("[1]")]}],
            TURN_2 + "has a `tool_calls` whose `arguments` must be an object or its JSON text, not a list",
        ),
        (
            [ASKED, SAID | {"tool_calls": [made_call({"x": "\udc00"})]}],
            TURN_2 + "has a `tool_calls` that holds half of a surrogate pair",
        ),
        (
            [ASKED, SAID | {"tool_calls": [made_call('{"x": 1e999}')]}],
            TURN_2 + "has a `tool_calls` that holds NaN or an infinite number",
        ),
        (
            [ASKED, SAID | {"tool_calls": [made_call('{"x": ' + "[" * 70 + "]" * 70 + "}")]}],
            TURN_2 + "has a `tool_calls` that is nested too deeply",
        ),
        (
            [ASKED, SAID | {"function_call": {"name": "f", "arguments": {"x": b"SECRET"}}}],
            TURN_2 + "has a `function_call` that holds a value that JSON lacks (bytes)",
        ),
        (
            [ASKED, {"from": "function_call", "value": "SECRET"}],
            TURN_2 + f"has a `value` that {NO_JSON}",
        ),
    ],
)
def test_a_turn_that_cannot_be_read_is_named(turns, problem):
    assert reason(turns).startswith(problem)


def test_the_column_is_named_as_the_file_has_it():
    assert reason([{"from": "x"}], "conversations").startswith("turn 1 of `conversations` has no `from`")


def test_a_system_column_is_the_first_turn():
    system = {"role": "system", "content": "s "}
    assert turns_of([ASKED, SAID], system="s ") == [system, ASKED, SAID]
    assert turns_of([ASKED, SAID], system="") == [ASKED, SAID]
    assert turns_of([system, ASKED, SAID], system="s ") == [system, ASKED, SAID]
    assert reason([system, ASKED, SAID], system="SECRET") == (
        "`system` stands beside another system turn in `messages`; keep one of them"
    )
    assert reason([ASKED, SAID], system=3) == "`system` must be text, not a number"


@pytest.mark.parametrize("write", [lambda tools: tools, json.dumps, tuple])
def test_tools_are_a_list_or_json_text(write):
    assert shaped([ASKED, SAID], tools=write([TOOL])).tools == (TOOL,)
    assert shaped([ASKED, SAID], tools=write([])).tools is None


@pytest.mark.parametrize("tools", [None, "", " "])
def test_no_tools(tools):
    assert shaped([ASKED, SAID], tools=tools).tools is None


def test_properties_that_a_table_fills_with_null_are_left_out():
    parameters = {"properties": {"x": {"default": None, "type": "number", "enum": None}, "y": None}, "required": None}
    (tool,) = shaped([ASKED, SAID], tools=[{"name": "f", "parameters": parameters}]).tools
    assert tool == {"name": "f", "parameters": {"properties": {"x": {"default": None, "type": "number"}}}}


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        ({"SECRET": 1}, "`tools` must be a list of tools or its JSON text, not an object"),
        ("SECRET", "`tools` is text that isn't JSON; write it with a JSON writer"),
        (["SECRET"], "tool 1 of `tools` must be an object, not text"),
        ([TOOL, {"x": float("inf")}], "tool 2 of `tools` holds NaN or an infinite number, which JSON lacks"),
        ([TOOL, {"\ud83d": 1}], "tool 2 of `tools` holds half of a surrogate pair"),
    ],
)
def test_tools_that_cannot_be_read_are_named(tools, problem):
    assert reason([ASKED, SAID], tools=tools).startswith(problem)
