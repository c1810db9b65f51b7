"""Any record, template and length: what is learnt is the answer, whole and once, and nothing else ever comes out."""

import copy
import os
from functools import cache, lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import chat_templates
from chat_templates import CALL, TOKENS, TOOLS
from llmtune.data.encoding.description import describe_tokenizer
from llmtune.data.encoding.encoders import make_encoder
from llmtune.data.encoding.tokenize import EncodedRecord, EncodingOptions, ExampleTokenizer
from llmtune.data.records import Record

fuzzed = settings(
    max_examples=int(os.environ.get("LLMTUNE_FUZZ_EXAMPLES", "300")),
    deadline=30_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

GIVEN = "≪given≫"
"""Stands in everything that isn't the assistant's."""
PIECES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [*TOKENS, "<s>", "</think>", "<think>\n", "<thi", " ", "\n\n", "\t", "x", "y", "|", "🤷🏽‍♀️", "e\u0301"]
    ),
    st.sampled_from(["word" * 300, " " * 200, "中" * 200, "\n" * 50]),
)
CONTENTS = st.lists(PIECES, max_size=5).map("".join).map(lambda text: text.encode("utf-8", "ignore").decode())
GIVENS = CONTENTS.map(lambda text: f"{GIVEN}{text}{GIVEN}")
THOUGHTS = st.none() | CONTENTS


@cache
def tokenizer_of(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": list(TOKENS)})
    return tokenizer


@cache
def engine_of(folder):
    return make_encoder(describe_tokenizer(tokenizer_of(folder)))


@lru_cache(maxsize=2 * len(chat_templates.ALL))  # an engine holds 45 MB, and lengths are drawn by the hundred
def encoder_of(folder, template, options):
    tokenizer = copy.deepcopy(tokenizer_of(folder))
    tokenizer.chat_template = chat_templates.ALL[template] if template else tokenizer.chat_template
    return ExampleTokenizer(describe_tokenizer(tokenizer), options, engine_of(folder))


@pytest.fixture(autouse=True, scope="module")
def loaded(tiny_llama, tiny_gpt2):
    """What is loaded once counts in no example's time."""
    for folder in (tiny_llama, tiny_gpt2):
        tokenizer_of(folder)
    for template in chat_templates.ALL:
        turns = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"})
        encoder_of(tiny_llama, template, LONG)([Record("f", 1, messages=turns, tools=tuple(TOOLS))])


@st.composite
def conversations(draw, alternating=False):
    turns = [{"role": "system", "content": draw(GIVENS)}] if draw(st.booleans()) and not alternating else []
    for _ in range(draw(st.integers(1, 4))):
        kinds = ["answer"] if alternating else ["answer", "answer", "answer", "call", "silent", "part"]
        kind = draw(st.sampled_from(kinds))
        if alternating or draw(st.integers(0, 5)):
            turns.append({"role": "user", "content": draw(GIVENS)})
        if kind == "answer":
            turn = {"role": "assistant", "content": draw(CONTENTS)}
            thought = None if alternating else draw(THOUGHTS)
            turns.append({**turn, "reasoning_content": thought} if thought else turn)
        elif kind == "call":
            turns.append({"role": "assistant", "content": None, "tool_calls": [CALL]})
            turns.append({"role": "tool", "content": draw(GIVENS)})
        elif kind == "part":
            turns.append({"role": "assistant", "content": [{"type": "text", "text": draw(CONTENTS)}]})
    tools = tuple(TOOLS) if not alternating and draw(st.booleans()) else None
    return Record("f", 1, messages=tuple(turns), tools=tools)


RECORDS = st.one_of(
    st.builds(lambda text: Record("f", 1, text=text), CONTENTS.filter(bool)),
    st.builds(lambda prompt, completion: Record("f", 1, prompt=prompt, completion=completion), GIVENS, CONTENTS),
    st.builds(
        lambda prompt, completion, system: Record(
            "f", 1, prompt=prompt, completion=completion, system=system, is_instruction=True
        ),
        GIVENS,
        CONTENTS,
        st.none() | GIVENS,
    ),
    conversations(),
)
TEMPLATES = st.sampled_from(sorted(chat_templates.ALL))
LONG = EncodingOptions(10**6)


def as_written(template, content):
    """What a template makes of an answer."""
    if template in ("llama-3", "gemma"):
        return content.strip()
    if template == "deepseek-r1":
        return content.split("</think>")[-1].removeprefix("<think>\n")  # which its prompt says
    if template == "qwen3":
        return content.split("</think>")[-1].lstrip("\n")
    return content


def learnt_runs(tokenizer, example):
    """The text of each stretch of learnt tokens."""
    learnt = np.flatnonzero(example.labels != -100)
    runs = np.split(learnt, np.flatnonzero(np.diff(learnt) > 1) + 1)
    return [tokenizer.decode(example.input_ids[run].tolist(), clean_up_tokenization_spaces=False) for run in runs]


def learnt_ids(examples):
    found = np.concatenate([example.labels[1:] for example in examples])
    return found[found != -100].tolist()


def check(encoded):
    """What holds for whatever comes out."""
    assert isinstance(encoded, EncodedRecord)
    assert bool(encoded.examples) == (encoded.dropped is None)
    assert not (encoded.is_mistake and encoded.dropped is None)
    assert GIVEN not in (encoded.dropped or "")
    for example in encoded.examples:
        learnt = example.labels != -100
        assert (example.labels[learnt] == example.input_ids[learnt]).all()
        assert example.input_ids.dtype == example.labels.dtype == np.int32
        assert example.num_supervised_tokens > 0
        assert example.num_supervised_bytes >= 0


@fuzzed
@given(records=st.lists(RECORDS, min_size=1, max_size=4), template=TEMPLATES, data=st.data())
def test_only_examples_or_a_reason_come_out_and_nothing_given_is_learnt(tiny_llama, records, template, data):
    options = EncodingOptions(data.draw(st.integers(1, 200)), data.draw(st.sampled_from(["truncate", "split", "drop"])))
    for encoded in encoder_of(tiny_llama, template, options)(records):
        check(encoded)
        assert all(len(example.input_ids) <= options.max_seq_len for example in encoded.examples)
    for record, encoded in zip(records, encoder_of(tiny_llama, template, LONG)(records), strict=True):
        check(encoded)
        for example in encoded.examples:
            assert not any(GIVEN in run for run in learnt_runs(tokenizer_of(tiny_llama), example)), record


@fuzzed
@given(record=conversations(alternating=True), template=TEMPLATES)
def test_every_answer_is_learnt_to_the_letter(tiny_llama, record, template):
    (encoded,) = encoder_of(tiny_llama, template, LONG)([record])
    check(encoded)
    answers = [as_written(template, turn["content"]) for turn in record.messages if turn["role"] == "assistant"]
    runs = [run for example in encoded.examples for run in learnt_runs(tokenizer_of(tiny_llama), example)]
    if template == "numbered":
        assert [run.removeprefix("|assistant:").removesuffix("<|im_end|>") for run in runs] == answers
        return
    ends = {"deepseek-r1": "<|end|>", "llama-3": "<|eot_id|>", "gemma": "<end_of_turn>", "no end": "\n\n"}
    end = ends.get(template, "<|im_end|>")
    if template == "no end":
        assert runs.pop().endswith(f"{answers[-1]}\n\n<|im_end|>")
        answers.pop()
    assert len(runs) == len(answers)
    for run, answer in zip(runs, answers, strict=True):
        assert run.endswith(answer + end)
        before = run[: len(run) - len(answer + end)]
        assert before == {"mistral": " "}.get(template, "") or template == "qwen3", before


@fuzzed
@given(prompt=CONTENTS, completion=CONTENTS, text=CONTENTS.filter(bool), folder=st.sampled_from(["llama", "gpt2"]))
def test_plain_rows_keep_their_text_exactly(tiny_llama, tiny_gpt2, prompt, completion, text, folder):
    path = {"llama": tiny_llama, "gpt2": tiny_gpt2}[folder]
    tokenizer, encode = tokenizer_of(path), encoder_of(path, None, LONG)
    end = tokenizer.eos_token
    pair, whole = encode([Record("f", 1, prompt=prompt, completion=completion), Record("f", 1, text=text)])
    for encoded, expected in ((pair, prompt + completion), (whole, text)):
        if encoded.dropped is not None:
            assert encoded.dropped == "no supervised token"
            continue
        (example,) = encoded.examples
        found = tokenizer.decode(example.input_ids.tolist(), clean_up_tokenization_spaces=False)
        assert found in (expected + end, expected)
    if pair.dropped is None:
        (run,) = learnt_runs(tokenizer, pair.examples[0])
        assert run in (completion + end, completion)


@fuzzed
@given(record=RECORDS, template=TEMPLATES, max_seq_len=st.integers(2, 150))
def test_every_learnt_token_is_in_one_window_and_truncation_keeps_the_start(tiny_llama, record, template, max_seq_len):
    (whole,) = encoder_of(tiny_llama, template, LONG)([record])
    (split,) = encoder_of(tiny_llama, template, EncodingOptions(max_seq_len, "split"))([record])
    (cut,) = encoder_of(tiny_llama, template, EncodingOptions(max_seq_len))([record])
    assert split.num_tokens == cut.num_tokens == whole.num_tokens
    if whole.dropped is not None:
        assert split.dropped == whole.dropped
        return
    assert learnt_ids(split.examples) == learnt_ids(whole.examples)
    num_bytes = [sum(example.num_supervised_bytes for example in each.examples) for each in (split, whole)]
    assert num_bytes[0] == num_bytes[1]
    if len(whole.examples) == 1:
        (example,) = whole.examples
        kept = [each.labels.tolist() for each in cut.examples]
        start = example.labels[:max_seq_len]
        assert kept == ([start.tolist()] if (start[1:] != -100).any() else [])
        assert cut.num_cut_tokens == (max(0, len(example.labels) - max_seq_len) if kept else 0)


@pytest.mark.parametrize("template", sorted(chat_templates.ALL))
def test_the_fuzz_would_notice_a_leak(tiny_llama, template):
    """Control: what is given does stand in the examples, so that a wrong mask would show it."""
    turns = ({"role": "user", "content": GIVEN}, {"role": "assistant", "content": "ho"})
    (encoded,) = encoder_of(tiny_llama, template, LONG)([Record("f", 1, messages=turns)])
    assert GIVEN in tokenizer_of(tiny_llama).decode(encoded.examples[0].input_ids.tolist())
