"""A tokenizer that knows the markers of all the tests' templates, and what encoding needs."""

import copy
from typing import Any

import pytest

from chat_templates import TOKENS
from llmtune.data.encoding.description import describe_tokenizer
from llmtune.data.encoding.tokenize import EncodingOptions, ExampleTokenizer
from llmtune.data.records import Record


@pytest.fixture(scope="session")
def marker_tokenizer(chat_tokenizer: Any) -> Any:
    """Byte-level; its start token is `<s>`, its end token `<|im_end|>`."""
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": list(TOKENS)})
    return tokenizer


@pytest.fixture(scope="session")
def encode() -> Any:
    """Encodes records with a tokenizer; options as keywords, `template` and `end_token` among them."""

    def encode_records(
        tokenizer: Any, *records: Record, template: str | None = None, end_token: str | None = None, **options: Any
    ):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template or tokenizer.chat_template
        tokenizer.eos_token = end_token or tokenizer.eos_token
        description = describe_tokenizer(tokenizer)
        return ExampleTokenizer(description, EncodingOptions(**{"max_seq_len": 1000, **options}))(records)

    return encode_records
