"""Examples that are too long or too short."""

import numpy as np
import pytest

from llmtune.data.records import Record

pytestmark = pytest.mark.fast


def text_record(text):
    return Record("f", 1, text=text)


def pair_record(prompt, completion):
    return Record("f", 1, prompt=prompt, completion=completion)


def test_truncation_cuts_the_end_and_is_noted(encode, plain_tokenizer):
    records = pair_record("ab", "1"), pair_record("ab", "123"), pair_record("1234", "5")
    whole, cut, lost = encode(plain_tokenizer, *records, max_seq_len=4)
    assert (whole.is_cut, cut.is_cut) == (False, True)
    (example,) = cut.examples
    assert plain_tokenizer.decode(example.labels[example.labels != -100].tolist()) == "12"
    assert (example.num_supervised_bytes, cut.num_tokens, cut.num_cut_tokens) == (2, 6, 2)
    assert (lost.examples, lost.dropped) == ((), "no supervised token within max_seq_len")
    assert lost.is_mistake is False


def test_bytes_are_counted_in_utf8(encode, plain_tokenizer):
    whole, cut = encode(plain_tokenizer, pair_record("a", "äß"), pair_record("1" * 97, "äß"), max_seq_len=100)
    assert whole.examples[0].num_supervised_bytes == 4
    assert cut.is_cut
    assert cut.examples[0].num_supervised_bytes == 2


def test_overlong_examples_can_be_left_out(encode, plain_tokenizer):
    fits, too_long = encode(plain_tokenizer, text_record("123"), text_record("1234"), max_seq_len=4, overlong="drop")
    assert len(fits.examples) == 1
    assert (too_long.examples, too_long.dropped, too_long.num_tokens) == ((), "longer than max_seq_len", 5)


def test_bounds_are_of_the_example_before_it_is_cut(encode, plain_tokenizer):
    records = [text_record("1" * length) for length in (1, 2, 4, 5)]
    found = encode(plain_tokenizer, *records, max_seq_len=3, min_tokens=3, max_tokens=5)
    assert [encoded.dropped for encoded in found] == [
        "fewer than 3 tokens (data.min_tokens)",
        None,
        None,
        "more than 5 tokens (data.max_tokens)",
    ]


def test_windows_share_one_token_that_only_the_first_of_two_learns(encode, plain_tokenizer):
    (encoded,) = encode(plain_tokenizer, pair_record("12", "345678"), max_seq_len=4, overlong="split")
    windows = [plain_tokenizer.decode(example.input_ids.tolist()) for example in encoded.examples]
    assert windows == ["1234", "4567", "78<|endoftext|>"]
    learnt = [example.labels != -100 for example in encoded.examples]
    assert [mask.tolist() for mask in learnt] == [
        [False, False, True, True],
        [False, True, True, True],
        [False, True, True],
    ]
    assert [example.num_supervised_bytes for example in encoded.examples] == [2, 3, 1]
    assert (encoded.num_windows, encoded.num_tokens, encoded.is_cut) == (3, 9, False)


def test_windows_without_anything_to_learn_are_counted_and_not_made(encode, plain_tokenizer):
    (encoded,) = encode(plain_tokenizer, pair_record("1" * 10, "23"), max_seq_len=4, overlong="split")
    assert encoded.num_windows == 4
    assert [plain_tokenizer.decode(example.input_ids.tolist()) for example in encoded.examples] == ["123<|endoftext|>"]


@pytest.mark.parametrize("max_seq_len", [2, 3, 5, 7, 50])
def test_windows_learn_every_token_once_and_their_bytes_add_up(encode, plain_tokenizer, max_seq_len):
    text = "The 中文 äöü 😀 quick ﬁ\ufffd fox\n" * 3
    for record in (text_record(text), pair_record("given ä", text)):
        (whole,) = encode(plain_tokenizer, record)
        (split,) = encode(plain_tokenizer, record, max_seq_len=max_seq_len, overlong="split")
        expected = whole.examples[0].labels[1:]
        learnt = np.concatenate([example.labels[1:] for example in split.examples])
        assert learnt[learnt != -100].tolist() == expected[expected != -100].tolist()
        assert sum(e.num_supervised_bytes for e in split.examples) == whole.examples[0].num_supervised_bytes
        assert all(len(example.input_ids) <= max_seq_len for example in split.examples)


def test_where_one_token_is_all_that_fits_nothing_is_learnt(encode, plain_tokenizer):
    for overlong in ("split", "truncate"):
        (encoded,) = encode(plain_tokenizer, text_record("123"), max_seq_len=1, overlong=overlong)
        assert encoded.dropped == "no supervised token within max_seq_len"
