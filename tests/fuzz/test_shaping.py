"""Whatever a row holds, it is a record with its text just as it stood, or a reason without any of it."""

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.config.data import RowConfig
from llmtune.config.row_columns import COLUMN_KEYS, find_wrong_columns
from llmtune.data.reading.blocks import Row
from llmtune.data.records import Record, content_hash
from llmtune.data.shaping.outcome import Unusable
from llmtune.data.shaping.shapes import RowShaper, as_row, shape_of, why_shape

NUM_EXAMPLES = int(os.environ.get("LLMTUNE_FUZZ_EXAMPLES", "300"))
fuzzed = settings(max_examples=NUM_EXAMPLES, deadline=30_000, suppress_health_check=[HealthCheck.too_slow])

ANY_TEXT = st.text(st.characters(codec=None), max_size=20)
"""Half surrogate pairs with it."""
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
SAID = TEXT.filter(lambda text: text.strip() != "")
NUMBERS = st.integers() | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | ANY_TEXT
COLUMNS = ("text", "content", "prompt", "completion", "instruction", "input", "output", "system", "tools", "group")
COLUMNS += ("messages", "conversations", "conversation", "question", "answer", "chosen", "rejected", "Text", "dialogue")
TURN_KEYS = ("role", "content", "from", "value", "tool_calls", "function_call", "name", "tool_call_id", "thinking")
TURN_KEYS += ("arguments", "function", "type", "text", "id", "reasoning_content", "weight")
ROLES = ("user", "assistant", "system", "tool", "human", "gpt", "function_call", "developer", "observation", "other")
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(ANY_TEXT, inner, max_size=4)
        | st.dictionaries(st.sampled_from(COLUMNS + TURN_KEYS), inner | st.sampled_from(ROLES), max_size=5)
    ),
    max_leaves=12,
)
CALLS = st.fixed_dictionaries(
    {"name": SAID},
    optional={"arguments": JSON | st.dictionaries(TEXT, JSON, max_size=3) | JSON.map(json.dumps), "id": TEXT | NUMBERS},
)
TURNS = st.fixed_dictionaries(
    {},
    optional={"role": st.sampled_from(ROLES), "from": st.sampled_from(ROLES), "content": TEXT | JSON, "value": TEXT}
    | {"tool_calls": st.lists(CALLS, max_size=2) | JSON, "thinking": TEXT | JSON, "name": TEXT | JSON, "odd": JSON},
)
TALKS = st.lists(TURNS, max_size=4) | JSON
ROWS = st.dictionaries(
    st.sampled_from(COLUMNS) | ANY_TEXT, TEXT | TALKS | TALKS.map(json.dumps) | JSON, min_size=1, max_size=5
)


def configs(shape: str, keys: tuple[str, ...]) -> st.SearchStrategy[RowConfig]:
    columns = {key: st.none() | st.sampled_from(COLUMNS) for key in (*keys, "group_column")}
    made = st.builds(RowConfig, shape=st.sampled_from(["auto", shape]), **columns)
    return made.filter(lambda rows: not find_wrong_columns(rows))


CONFIGS = st.just(RowConfig()) | st.one_of(
    configs("instruction", (*COLUMN_KEYS["instruction"], "system_column")),
    configs("messages", ("messages_column", "system_column", "tools_column")),
    *(configs(shape, COLUMN_KEYS[shape]) for shape in ("text", "completion")),
)

GOOD_TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT},
    optional={"name": TEXT, "tool_call_id": TEXT},
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
GOOD_CALL = st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
    SAID,
    st.dictionaries(TEXT, PLAIN, max_size=3),
)
ANSWER = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": SAID},
    optional={"reasoning_content": TEXT.filter(bool), "tool_calls": st.lists(GOOD_CALL, min_size=1, max_size=2)},
)
GOOD_TALK = st.builds(
    lambda asked, between, answer: ({"role": "user", "content": asked}, *between, answer),
    TEXT,
    st.lists(GOOD_TURN, max_size=3),
    ANSWER,
)
TOOLS = st.lists(
    st.fixed_dictionaries({"name": SAID, "parameters": st.just({"default": None})}), min_size=1, max_size=2
)
GROUP = st.none() | SAID
RECORDS = (
    st.builds(lambda text, group: Record("F", 1, text=text, group=group), SAID, GROUP)
    | st.builds(lambda p, c, group: Record("F", 1, prompt=p, completion=c, group=group), TEXT, SAID, GROUP)
    | st.builds(
        lambda p, c, system: Record("F", 1, prompt=p, completion=c, is_instruction=True, system=system),
        *(TEXT, SAID, st.none() | SAID),
    )
    | st.builds(
        lambda turns, tools: Record("F", 1, messages=turns, tools=tools), GOOD_TALK, st.none() | TOOLS.map(tuple)
    )
)


def shaped(content: Any, rows: RowConfig) -> Record | Unusable:
    shaper = RowShaper(rows, "F")
    found = shaper(Row(1, content))
    assert isinstance(found, Record | Unusable)
    for name in shaper.unread_columns:
        name.encode()
    why_shape(shaper.columns, rows).encode()
    if isinstance(found, Unusable):
        assert found.reason
        assert "\n" not in found.reason
        found.reason.encode()
    else:
        assert shape_of(found)
        content_hash(found)
        json.dumps(as_row(found), allow_nan=False).encode()
    return found


def kept_text(content: Any) -> set[str]:
    """Every text at any depth."""
    if isinstance(content, str):
        return {content}
    inner = [*content.values()] if isinstance(content, dict) else content if isinstance(content, list) else ()
    return {text for part in inner for text in kept_text(part)}


@fuzzed
@given(JSON, CONFIGS)
def test_any_value_is_a_record_or_a_reason(content, rows):
    shaped(content, rows)


@fuzzed
@given(ROWS, CONFIGS)
def test_near_valid_rows_are_records_that_read_back_or_reasons(content, rows):
    found = shaped(content, rows)
    if not isinstance(found, Record):
        return
    again = shaped(as_row(found), RowConfig(group_column="group" if found.group is not None else None))
    assert again == found
    if found.text is not None:
        assert found.text in kept_text(content)


@fuzzed
@given(TALKS, st.sampled_from(["messages", "conversations"]), TALKS)
def test_near_valid_conversations_are_records_that_read_back_or_reasons(turns, column, tools):
    found = shaped({column: turns, "tools": tools}, RowConfig())
    if isinstance(found, Record):
        assert shaped(as_row(found), RowConfig()) == found


@fuzzed
@given(RECORDS)
def test_a_record_is_read_back_from_its_json(record):
    row = json.loads(json.dumps(as_row(record)))
    assert shaped(row, RowConfig(group_column="group" if record.group is not None else None)) == record


@fuzzed
@given(SAID, TEXT, TEXT)
def test_text_is_kept_just_as_it_stands(text, other, about):
    assert shaped({"text": text}, RowConfig()).text == text
    assert shaped({"body": text, "text": other}, RowConfig(text_column="body")).text == text
    pair = shaped({"prompt": other, "completion": text}, RowConfig())
    assert (pair.prompt, pair.completion) == (other, text)
    asked = shaped({"instruction": other, "input": about, "output": text}, RowConfig())
    assert asked.completion == text
    assert asked.prompt == (f"{other}\n\n{about}" if other and about.strip() else about if about.strip() else other)
    turns = [{"from": "human", "value": other}, {"from": "gpt", "value": text}]
    assert [turn["content"] for turn in shaped({"conversations": turns}, RowConfig()).messages] == [other, text]


SECRET = "zq7secretzq7"


@fuzzed
@given(
    st.recursive(
        st.just(SECRET) | st.none() | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(COLUMNS + TURN_KEYS), inner, max_size=5)
        ),
        max_leaves=12,
    ),
    CONFIGS,
)
def test_a_reason_holds_no_text_of_the_row(content, rows):
    found = shaped(content, rows)
    assert isinstance(found, Record) or SECRET not in found.reason


@pytest.mark.parametrize("content", ["[" * 100_000 + "]" * 100_000, "9" * 5000, '{"a":' * 5000 + "1" + "}" * 5000])
def test_json_text_of_any_depth_is_refused(content):
    rows = RowConfig()
    assert isinstance(shaped({"messages": content}, rows), Unusable)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert isinstance(shaped({"messages": turns, "tools": content}, rows), Unusable)
    call = {"name": "f", "arguments": content}
    assert isinstance(shaped({"messages": [turns[0], turns[1] | {"function_call": call}]}, rows), Unusable)
