"""Ids and labels, worked out by hand."""

import copy
import os

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmtune.data.records import Record
from llmtune.data.tokenize import ExampleTokenizer, parallel_tokenizers
from llmtune.errors import DataError

pytestmark = pytest.mark.fast

TURNS = (
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "user", "content": "he"},
    {"role": "assistant", "content": "ha"},
)


def text_record(text):
    return Record("f", 1, text=text)


def pair_record(prompt, completion):
    return Record("f", 1, prompt=prompt, completion=completion)


def bare(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def supervised_text(tokenizer, example):
    return tokenizer.decode(example.labels[example.labels != -100].tolist())


def word_tokenizer(*, prepend_scheme="never", start=False):
    """Each character is a token; a space reads ▁."""
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<unk>", "▁", "\n", *"abcdef"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_text_is_supervised_as_a_whole_with_its_end_token():
    (example,) = ExampleTokenizer(word_tokenizer(), 100)([text_record("ab")])
    assert example.input_ids.tolist() == [5, 6, 1]
    assert example.labels.tolist() == [5, 6, 1]
    assert example.num_supervised_tokens == 2
    assert example.num_supervised_bytes == 1
    assert example.input_ids.dtype == example.labels.dtype == np.int32


def test_of_a_pair_only_completion_and_end_token_are_supervised():
    (example,) = ExampleTokenizer(word_tokenizer(), 100)([pair_record("ab", " cd")])
    assert example.input_ids.tolist() == [5, 6, 3, 7, 8, 1]
    assert example.labels.tolist() == [-100, -100, 3, 7, 8, 1]
    assert example.num_supervised_tokens == 4
    assert example.num_supervised_bytes == 3


def test_the_tokenizers_own_start_token_comes_once():
    tokenize = ExampleTokenizer(word_tokenizer(start=True), 100)
    added, given = tokenize([text_record("ab"), text_record("<s>ab")])
    assert added.input_ids.tolist() == given.input_ids.tolist() == [0, 5, 6, 1]
    assert added.labels.tolist() == [-100, 5, 6, 1]
    assert added.num_supervised_bytes == 2
    (pair,) = tokenize([pair_record("a", "b")])
    assert pair.input_ids.tolist() == [0, 5, 6, 1]


def test_an_end_token_in_the_text_is_not_doubled():
    (example,) = ExampleTokenizer(word_tokenizer(), 100)([text_record("ab</s>")])
    assert example.input_ids.tolist() == [5, 6, 1]


def test_a_tokenizer_that_puts_a_space_before_text_adds_none_between_prompt_and_completion():
    tokenizer = word_tokenizer(prepend_scheme="first")
    assert bare(tokenizer, "cd") == [3, 7, 8]
    (example,) = ExampleTokenizer(tokenizer, 100)([pair_record("ab", "cd")])
    assert example.input_ids.tolist() == [3, 5, 6, 7, 8, 1]
    assert example.labels.tolist() == [-100, -100, -100, 7, 8, 1]


def test_no_token_reaches_over_the_border(plain_tokenizer):
    joined = bare(plain_tokenizer, "the hello")
    (example,) = ExampleTokenizer(plain_tokenizer, 100)([pair_record("the h", "ello")])
    expected = [*bare(plain_tokenizer, "the h"), *bare(plain_tokenizer, "ello"), plain_tokenizer.eos_token_id]
    assert example.input_ids.tolist() == expected
    assert len(expected) - 1 > len(joined)
    assert supervised_text(plain_tokenizer, example) == "ello<|endoftext|>"


def test_truncation_cuts_the_end_and_is_noted():
    tokenize = ExampleTokenizer(word_tokenizer(), 4)
    whole, cut, lost = tokenize([pair_record("ab", "c"), pair_record("ab", "cde"), pair_record("abcd", "e")])
    assert (whole.truncated, cut.truncated, lost.truncated) == (False, True, True)
    assert cut.labels.tolist() == [-100, -100, 7, 8]
    assert cut.num_supervised_bytes == 2
    assert lost.num_supervised_tokens == 0
    assert lost.num_supervised_bytes == 0


def test_bytes_are_counted_in_utf8(plain_tokenizer):
    whole, cut = ExampleTokenizer(plain_tokenizer, 100)([pair_record("a", "äß"), pair_record("a" * 97, "äß")])
    assert whole.num_supervised_bytes == 4
    assert cut.truncated
    assert cut.num_supervised_bytes == 2


def test_of_a_conversation_the_assistants_turns_and_their_end_tokens_are_supervised(chat_tokenizer):
    (example,) = ExampleTokenizer(chat_tokenizer, 1000)([Record("f", 1, messages=TURNS)])
    assert chat_tokenizer.decode(example.input_ids.tolist()) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
        "<|im_start|>user\nhe<|im_end|>\n<|im_start|>assistant\nha<|im_end|>\n"
    )
    assert supervised_text(chat_tokenizer, example) == "ho<|im_end|>ha<|im_end|>"
    assert example.num_supervised_bytes == 4


def test_a_tokenizer_without_a_chat_template_is_refused_with_the_cure(plain_tokenizer):
    with pytest.raises(DataError, match="no chat template; choose an instruct or chat variant"):
        ExampleTokenizer(plain_tokenizer, 100)([Record("f", 1, messages=TURNS)])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "g:7: .* renders turn 2 differ"),
        ("{{ raise_exception('roles must alternate') }}", "g:7: the chat template refuses .*: roles must alternate"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused_by_line(chat_tokenizer, template, reason):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=reason):
        ExampleTokenizer(tokenizer, 100)([Record("g", 7, messages=TURNS)])


def test_parallelism_is_on_inside_and_off_afterwards(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "set by the user")
    with parallel_tokenizers():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "set by the user"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    with parallel_tokenizers():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
