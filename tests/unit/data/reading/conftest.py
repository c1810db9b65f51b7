"""Reads a file as the data section does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtune.config.data import FilesConfig
from llmtune.data.reading.blocks import Entry
from llmtune.data.reading.sources import Source, open_sources
from llmtune.errors import DataError


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Source]:
    """Opens a path."""

    def open_path(path: Any, **config: Any) -> Source:
        return open_sources(FilesConfig(path=str(path), **config), tmp_path / "cache")[0]

    return open_path


@pytest.fixture
def read(opened: Callable[..., Source]) -> Callable[..., list[Entry]]:
    """Every entry of a path, the same in two passes."""

    def read_path(path: Any, **config: Any) -> list[Entry]:
        source = opened(path, **config)
        first, second = ([entry for block in source.blocks() for entry in block.entries()] for _ in range(2))
        assert repr(first) == repr(second)  # NaN is another each time
        return first

    return read_path


@pytest.fixture
def refusal(opened: Callable[..., Source]) -> Callable[..., str]:
    """The message with which a path is refused, at once or when it is read; the path in it is F."""

    def refuse(path: Any, **config: Any) -> str:
        with pytest.raises(DataError) as caught:
            list(opened(path, **config).blocks())
        message = str(caught.value)
        assert "\n" not in message
        return message.replace(str(path), "F")

    return refuse
