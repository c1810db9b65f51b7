"""Fixtures of the data tests: the tiny tokenizers and a way to write a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer


@pytest.fixture(scope="session")
def chat_tokenizer(tiny_llama: Path) -> Any:
    """Byte-level, pad = eos = `<|im_end|>`, with a chat template."""
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="session")
def plain_tokenizer(tiny_gpt2: Path) -> Any:
    """Byte-level, no chat template."""
    return AutoTokenizer.from_pretrained(tiny_gpt2)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes bytes or text, line ends as given, and returns the path."""

    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file
