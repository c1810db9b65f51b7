"""Ids and labels, worked out by hand."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmtune.data.encoding.description import describe_tokenizer
from llmtune.data.encoding.tokenize import EncodingOptions, ExampleTokenizer
from llmtune.data.records import Record
from llmtune.errors import DataError

pytestmark = pytest.mark.fast


def text_record(text):
    return Record("f", 1, text=text)


def pair_record(prompt, completion, **more):
    return Record("f", 1, prompt=prompt, completion=completion, **more)


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


def only(encoded):
    """The one example of a record."""
    assert encoded.dropped is None
    (example,) = encoded.examples
    return example


def test_text_is_supervised_as_a_whole_with_its_end_token(encode):
    (encoded,) = encode(word_tokenizer(), text_record("ab"))
    example = only(encoded)
    assert example.input_ids.tolist() == [5, 6, 1]
    assert example.labels.tolist() == [5, 6, 1]
    assert example.num_supervised_tokens == 2
    assert example.num_supervised_bytes == 1
    assert example.input_ids.dtype == example.labels.dtype == np.int32
    assert (encoded.num_tokens, encoded.is_cut, encoded.num_windows, encoded.by_turn) == (3, False, 1, False)


def test_of_a_pair_only_completion_and_end_token_are_supervised(encode):
    example = only(*encode(word_tokenizer(), pair_record("ab", " cd")))
    assert example.input_ids.tolist() == [5, 6, 3, 7, 8, 1]
    assert example.labels.tolist() == [-100, -100, 3, 7, 8, 1]
    assert example.num_supervised_tokens == 4
    assert example.num_supervised_bytes == 3


def test_the_tokenizers_own_start_token_comes_once(encode):
    records = text_record("ab"), text_record("<s>ab"), pair_record("a", "b")
    added, given, pair = map(only, encode(word_tokenizer(start=True), *records))
    assert added.input_ids.tolist() == given.input_ids.tolist() == [0, 5, 6, 1]
    assert added.labels.tolist() == [-100, 5, 6, 1]
    assert added.num_supervised_bytes == 2
    assert pair.input_ids.tolist() == [0, 5, 6, 1]


def test_an_end_token_in_the_text_is_not_doubled(encode):
    assert only(*encode(word_tokenizer(), text_record("ab</s>"))).input_ids.tolist() == [5, 6, 1]


def test_an_end_token_that_the_prompt_ends_with_is_no_answer(encode):
    example = only(*encode(word_tokenizer(), pair_record("ab</s>", "")))
    assert example.input_ids.tolist() == [5, 6, 1, 1]
    assert example.labels.tolist() == [-100, -100, -100, 1]


def test_another_end_token_can_be_named(encode, chat_tokenizer):
    example = only(*encode(chat_tokenizer, text_record("ab"), end_token="<|endoftext|>"))
    assert example.labels[-1] == chat_tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"no end token .* data\.end_token"):
        describe_tokenizer(tokenizer)


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_tokenizer_that_puts_a_space_before_text_adds_none_between_prompt_and_completion(encode, scheme):
    tokenizer = word_tokenizer(prepend_scheme=scheme)
    assert bare(tokenizer, "cd") == [3, 7, 8]
    example, later = map(only, encode(tokenizer, pair_record("ab", "cd"), pair_record("ab", "\n d")))
    assert example.input_ids.tolist() == [3, 5, 6, 7, 8, 1]
    assert example.labels.tolist() == [-100, -100, -100, 7, 8, 1]
    assert later.input_ids.tolist() == [3, 5, 6, 4, 3, 8, 1]


def test_a_tokenizer_that_joins_line_ends_is_led_in_with_its_end_token(encode):
    vocabulary = {token: n for n, token in enumerate(["<s>", "</s>", "<unk>", "▁", "\n", *"abcdef", "\n\n"])}
    backend = Tokenizer(models.BPE(vocabulary, [("\n", "\n")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    assert only(*encode(tokenizer, pair_record("ab", "\nc"))).input_ids.tolist() == [3, 5, 6, 4, 7, 1]


def test_no_token_reaches_over_the_border(encode, plain_tokenizer):
    joined = bare(plain_tokenizer, "the hello")
    example = only(*encode(plain_tokenizer, pair_record("the h", "ello")))
    expected = [*bare(plain_tokenizer, "the h"), *bare(plain_tokenizer, "ello"), plain_tokenizer.eos_token_id]
    assert example.input_ids.tolist() == expected
    assert len(expected) - 1 > len(joined)
    assert supervised_text(plain_tokenizer, example) == "ello<|endoftext|>"


def test_an_instruction_without_a_template_stands_under_headings(encode, plain_tokenizer):
    with_system, without = encode(
        plain_tokenizer,
        pair_record("add\n\n1 2", "3", is_instruction=True, system="be brief"),
        pair_record("add", "3", is_instruction=True),
    )
    text = plain_tokenizer.decode(only(with_system).input_ids.tolist())
    assert text == "be brief\n\n### Instruction:\nadd\n\n1 2\n\n### Response:\n3<|endoftext|>"
    assert plain_tokenizer.decode(only(without).input_ids.tolist()).startswith("### Instruction:\nadd\n\n###")
    assert supervised_text(plain_tokenizer, only(with_system)) == "3<|endoftext|>"


def test_an_instruction_is_a_conversation_where_there_is_a_template(encode, chat_tokenizer):
    asked = {"role": "user", "content": "add"}
    answer = {"role": "assistant", "content": "3"}
    system = {"role": "system", "content": "be brief"}
    found = encode(
        chat_tokenizer,
        pair_record("add", "3", is_instruction=True, system="be brief"),
        Record("f", 1, messages=(system, asked, answer)),
        pair_record("add", "3", is_instruction=True),
        Record("f", 1, messages=(asked, answer)),
    )
    examples = list(map(only, found))
    for instruction, conversation in (examples[:2], examples[2:]):
        assert instruction.input_ids.tolist() == conversation.input_ids.tolist()
        assert instruction.labels.tolist() == conversation.labels.tolist()
        assert supervised_text(chat_tokenizer, instruction) == "3<|im_end|>"


def test_a_tokenizer_without_a_chat_template_is_refused_with_the_cure(encode, plain_tokenizer):
    record = Record("f", 1, messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}))
    with pytest.raises(DataError, match=r"no chat template; choose an instruct or chat variant .* data\.chat_template"):
        encode(plain_tokenizer, record)
    (encoded,) = encode(plain_tokenizer, record, template="{% for m in messages %}{{ m.content }}{% endfor %}")
    assert supervised_text(plain_tokenizer, only(encoded)) == "ho<|endoftext|>"


def test_a_template_that_is_not_jinja_is_refused_with_its_line(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = "{{ messages }}\n{% for %}"
    with pytest.raises(DataError, match="the chat template can't be read, see its line 2: "):
        describe_tokenizer(tokenizer)


def test_half_a_character_is_a_bad_record(encode, plain_tokenizer):
    good, bad = encode(plain_tokenizer, text_record("ab"), text_record("a\ud83d"))
    assert (bad.examples, bad.is_mistake) == ((), True)
    assert bad.dropped.startswith("half a character")
    assert only(good).labels.tolist() == only(*encode(plain_tokenizer, text_record("ab"))).labels.tolist()


def test_a_call_may_be_empty(encode, plain_tokenizer):
    assert encode(plain_tokenizer) == []


def test_padding_and_truncation_of_the_tokenizers_last_call_do_not_count(encode):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "</s>"
    tokenizer(["ab", "abcdef"], padding=True, truncation=True, max_length=3)
    short, long = map(only, encode(tokenizer, text_record("a"), text_record("abcdef")))
    assert (short.input_ids.tolist(), len(long.input_ids)) == ([5, 1], 7)


def test_the_description_is_enough_for_a_process_without_torch(chat_tokenizer, tmp_path):
    description = describe_tokenizer(chat_tokenizer)
    assert not description.in_process_only
    (tmp_path / "description").write_bytes(pickle.dumps(description))
    program = (
        "import pickle, sys, pathlib\n"
        "from llmtune.data.encoding.tokenize import EncodingOptions, ExampleTokenizer\n"
        "assert 'transformers' not in sys.modules\n"
        "from llmtune.data.records import Record\n"
        f"description = pickle.loads(pathlib.Path({str(tmp_path / 'description')!r}).read_bytes())\n"
        "turns = ({'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'ho'})\n"
        "(found,) = ExampleTokenizer(description, EncodingOptions(99))([Record('f', 1, messages=turns)])\n"
        "print(found.examples[0].labels.tolist(), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    (here,) = ExampleTokenizer(description, EncodingOptions(99))(
        [Record("f", 1, messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}))]
    )
    assert done.stdout.strip() == f"{only(here).labels.tolist()} False", done.stderr


class SlowTokenizer:
    """A tokenizer written in Python: no backend, each letter a token."""

    eos_token_id, chat_template, special_tokens_map, all_special_ids = 0, None, {"eos_token": "$"}, [0]

    def get_vocab(self):
        return {"$": 0}

    def convert_ids_to_tokens(self, ids):
        return [self.convert_ids_to_tokens(each) for each in ids] if isinstance(ids, list) else chr(96 + ids)

    def __call__(self, text, add_special_tokens=True, **options):
        if isinstance(text, list):
            return {"input_ids": [self(each)["input_ids"] for each in text]}
        return {"input_ids": [ord(letter) - 96 for letter in text]}

    def decode(self, ids, **options):
        return "".join(chr(96 + number) for number in ids)


def test_a_tokenizer_without_a_backend_works_in_this_process():
    description = describe_tokenizer(SlowTokenizer())
    assert description.in_process_only
    example = only(*ExampleTokenizer(description, EncodingOptions(9))([pair_record("ab", "c")]))
    assert (example.input_ids.tolist(), example.labels.tolist()) == ([1, 2, 3, 0], [-100, -100, 3, 0])
