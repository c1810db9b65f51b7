"""Fingerprints: what counts as the same, and that every process says so."""

import hashlib
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from llmtune.data.cleaning import word_runs as module
from llmtune.data.cleaning.fingerprints import exact_key, fingerprint, signatures_of
from llmtune.data.cleaning.word_runs import count_words, word_runs
from llmtune.data.records import Record, content_hash, own_text, whole_text

pytestmark = pytest.mark.fast

TURNS = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})


def text(content):
    return Record("f", 1, text=content)


def normalised_key(record):
    return int(fingerprint([record], ["0" * 64], near=False).normalised[0])


def key(content):
    return normalised_key(text(content))


def likeness(one, other):
    first, second = signatures_of(word_runs([one, other]))
    return np.count_nonzero(first == second) / 64


@pytest.mark.parametrize(
    ("record", "canonical"),
    [
        (text(" a\r\nb "), '["text", "a\\nb"]'),
        (text("cafe\u0301"), '["text", "café"]'),
        (Record("f", 1, prompt=" a ", completion=" b "), '["completion", "a ", " b"]'),
        (Record("f", 1, messages=TURNS[:1]), '["messages", [{"content": "Hi", "role": "user"}]]'),
        (Record("f", 1, prompt="a", completion="b", is_instruction=True), '["instruction", "a", "b"]'),
        (Record("f", 1, prompt="a", completion="b", is_instruction=True, system="s"), '["instruction", "a", "b", "s"]'),
        (
            Record("f", 1, messages=TURNS[:1], tools=({"name": "t"},)),
            '["messages", [{"content": "Hi", "role": "user"}], [{"name": "t"}]]',
        ),
    ],
)
def test_the_content_hash_is_of_this_and_splits_stay_as_they_are(record, canonical):
    assert content_hash(record) == hashlib.sha256(canonical.encode()).hexdigest()


def test_half_a_surrogate_pair_has_a_hash_too():
    lone = text("a\ud800b")
    assert len(content_hash(lone)) == 64
    assert key("a\ud800b") != key("ab")


def test_the_exact_key_is_the_start_of_the_hash():
    assert exact_key("00000000000000010000000000000002" + "f" * 32) == (1, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello, World!", "hello   world"),
        ("foo(bar)", "foo (bar);"),
        ("a=b", "a = b"),
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("“quoted” — so", '"quoted" - so'),
        ("Ａｂ", "ab"),
        ("日本、語。", "日本語"),
        ("Don't\n", "don t"),
    ],
)
def test_case_space_and_punctuation_do_not_count(one, other):
    assert content_hash(text(one)) != content_hash(text(other))
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a + b", "a / b"),
        ("1.5", "15"),
        ("ab", "a b"),
        ("snake_case", "snake case"),
        ("a b c", "a c b"),
        ("...", "!!!"),
        ("word", "word word"),
        ("😀", "😡"),
        ("", "a"),
        ("x < y", "x > y"),
    ],
)
def test_words_signs_and_their_order_do(one, other):
    assert key(one) != key(other)


def test_all_of_a_record_counts():
    pair = Record("f", 1, prompt="the question", completion="the answer")
    chat = Record("f", 1, messages=TURNS)
    called = Record("f", 1, messages=({"role": "assistant", "tool_calls": [{"name": "look"}], "content": None},))
    assert whole_text(pair) == own_text(pair) == "the question\nthe answer"
    assert normalised_key(pair) == key("The question: the answer")
    assert whole_text(chat) == "Hi\nHello"
    assert '"look"' in whole_text(called)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_instructions_of_a_conversation_are_no_part_of_what_it_says_itself(role):
    record = Record("f", 1, messages=(TURNS[0], {"role": role, "content": "Be kind"}, TURNS[1]))
    assert own_text(record) == "Hi\nHello"
    assert whole_text(record) == "Be kind\nHi\nHello"


def test_a_shared_system_prompt_does_not_make_examples_alike():
    system = " ".join(f"rule{n}" for n in range(300))
    rows = [
        Record("f", n, messages=({"role": "system", "content": system}, {"role": "user", "content": f"w{n} " * 9}))
        for n in range(2)
    ]
    found = fingerprint(rows, [content_hash(row) for row in rows], near=True)
    assert found.signatures is not None
    assert np.count_nonzero(found.signatures[0] == found.signatures[1]) < 10
    assert found.normalised[0] != found.normalised[1]
    assert likeness(*(whole_text(row) for row in rows)) > 0.8  # control: with it they would be
    assert "rule299" in whole_text(rows[0])
    assert "rule299" not in own_text(rows[0])


def test_columns_have_a_row_a_record_whatever_stands_beside_it():
    contents = ["", "one", "two words", "!!!", "日本語の文", "ünï " * 50, "a b c d e f g", "x " * 400, "?"] * 20
    together = fingerprint([text(c) for c in contents], [content_hash(text(c)) for c in contents], near=True)
    assert together.exact.shape == (180, 2)
    assert together.signatures is not None
    for place in range(9):
        alone = fingerprint([text(contents[place])], [content_hash(text(contents[place]))], near=True)
        assert alone.signatures is not None
        assert together.exact[place].tolist() == alone.exact[0].tolist()
        assert together.normalised[place] == alone.normalised[0]
        assert (together.signatures[place] == alone.signatures[0]).all()
    assert len(set(together.normalised.tolist())) == 9
    without = fingerprint([text("a")], [content_hash(text("a"))], near=False)
    assert without.signatures is None
    assert fingerprint([], [], near=True).exact.shape == (0, 2)


def test_runs_are_of_five_words_and_a_short_text_is_one_run():
    def num_runs(content):
        return len(word_runs([content]).runs)

    assert [num_runs(" ".join("abcdefgh"[:n])) for n in range(1, 9)] == [1, 1, 1, 1, 1, 2, 3, 4]
    found = word_runs(["a b c d e f", "a b c", "z a b c d e"])
    assert found.offsets.tolist() == [0, 2, 3, 5]
    assert found.runs[0] == found.runs[4]  # "a b c d e" in both
    assert len(set(found.runs.tolist())) == 4


def test_likeness_is_estimated_within_its_error():
    words = [f"w{n}" for n in range(404)]
    base = " ".join(words)
    for changed in (0, 10, 40, 80):  # each changed word changes five runs
        other = " ".join(f"x{n}" if n % 5 == 2 and n < changed * 5 else word for n, word in enumerate(words))
        runs = [{tuple(t.split()[i : i + 5]) for i in range(400)} for t in (base, other)]
        true = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
        assert abs(likeness(base, other) - true) < 4 * (true * (1 - true) / 64) ** 0.5 + 1e-9


def test_a_long_text_has_the_same_key_as_with_other_spaces(monkeypatch):
    rng = random.Random(0)
    long = " ".join(rng.choice(["alpha", "beta", "+", "été", "x"]) for _ in range(9000))
    whole = key(long)
    assert whole == key(long.replace(" ", " \n  "))
    monkeypatch.setattr(module, "_SLICE", 512)
    module._powers.cache_clear()
    try:
        assert key(long) == key(long.replace(" ", "\n   "))
        assert key(long) != key(long + " x")
        sliced = word_runs([long, "a b", long])
        assert sliced.keys[0] == sliced.keys[2]
        assert len(word_runs(["y" * 5000]).runs) > 0
        assert key("!" * 5000) != key("?" * 5000)
    finally:
        monkeypatch.undo()
        module._powers.cache_clear()


def test_every_process_says_the_same():
    code = (
        "from llmtune.data.cleaning.fingerprints import *;from llmtune.data.cleaning.word_runs import word_runs;"
        "w=word_runs(['The quick brown fox – jumps over', 'été']);print(w.keys.tolist(), signatures_of(w).sum())"
    )
    outs = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outs) == 1
    assert b"[" in outs.pop()


@pytest.mark.parametrize(
    ("content", "number"),
    [
        ("", 0),
        ("one", 1),
        (" two\n words ", 2),
        ("naïve café", 2),
        ("日本語", 3),
        ("日本語 is fun", 5),
        ("เก", 2),
        (" ", 0),
    ],
)
def test_words_are_counted_by_white_space_and_by_character_without_it(content, number):
    assert count_words(content) == number
