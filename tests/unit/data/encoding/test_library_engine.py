"""The engine over the `tokenizers` library."""

import os

import pytest

from llmtune.data.encoding.description import describe_tokenizer
from llmtune.data.encoding.encoders import make_encoder
from llmtune.data.encoding.library_engine import parallel_tokenizers

pytestmark = pytest.mark.fast

TEXTS = ["", "hello there", " a<|im_end|>b ", "äß 中\n\n\tx"]


def test_ids_and_text_are_those_of_the_tokenizer(chat_tokenizer):
    encoder = make_encoder(describe_tokenizer(chat_tokenizer))
    found = encoder.encode(TEXTS)
    assert [ids.tolist() for ids in found] == chat_tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert all(str(ids.dtype) == "int32" for ids in found)
    assert [encoder.decode(ids.tolist()) for ids in found] == TEXTS


def test_special_tokens_can_be_taken_apart_as_text(chat_tokenizer):
    encoder = make_encoder(describe_tokenizer(chat_tokenizer), splits_special=True)
    (ids,) = encoder.encode(["a<|im_end|>b"])
    assert chat_tokenizer.eos_token_id not in ids
    assert encoder.decode(ids.tolist()) == "a<|im_end|>b"


def test_parallelism_is_on_inside_and_off_afterwards(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "set by the user")
    with parallel_tokenizers():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "set by the user"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    with parallel_tokenizers():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
