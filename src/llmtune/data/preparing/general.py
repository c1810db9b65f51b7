"""General text as tokens: what shows whether a model forgets what it could do before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.config.data import FilesConfig
from llmtune.data.preparing.prepared import prepare_sources
from llmtune.data.reading.sources import Source, open_description_source, open_general_source
from llmtune.data.token_table import TokenTable
from llmtune.errors import DataError

KEY = "evaluate.general_path"
_MOST_TOKENS = 512


@dataclass(frozen=True)
class GeneralText:
    """Pieces of general text."""

    table: TokenTable
    """The pieces; all tokens but the first are supervised."""
    clusters: list[str]
    """Of each piece, what it belongs to: a package, or at least a row of a file."""
    digest: str
    """Hex sha256 of all tokens and labels."""
    source: str
    """Where it comes from."""


def prepare_general(
    path: str | None, num_examples: int, max_seq_len: int, tokenizer: tuple[Any, str], cache_dir: Path
) -> GeneralText | None:
    """Pieces of general text, spread over their source; the same for every seed.

    Args:
        path: a file of text, or a folder or glob of such files; None takes the descriptions of installed packages.
        num_examples: how many pieces at most.
        max_seq_len: tokens of the data's longest example; a piece has as many at most, and no more than 512.
        tokenizer: a transformers tokenizer, and what tells it apart from others.
        cache_dir: folder that keeps prepared data.

    Returns:
        The pieces; None where no package has a description.

    Raises:
        DataError: the file can't be read, or holds no example.
    """
    try:
        source = open_description_source(num_examples) if path is None else open_general_source(path, KEY, cache_dir)
        if source is None:
            return None
        prepared = prepare_sources(_config(source, path, max_seq_len), ([], [source]), *tokenizer, cache_dir)
    except DataError as error:
        if KEY in str(error):
            raise
        raise DataError(f"{KEY}: {error}") from error
    table = prepared.test
    chosen = np.linspace(0, len(table) - 1, min(num_examples, len(table))).astype(np.int64)
    left_out = np.ones(len(table), np.bool_)
    left_out[chosen] = False
    clusters = prepared.test_clusters()
    pieces = table.without(left_out)
    return GeneralText(pieces, [clusters[index] for index in chosen.tolist()], pieces.tokens_digest(), source.name)


def _config(source: Source, path: str | None, max_seq_len: int) -> FilesConfig:
    """How general text is prepared: installed pieces are short enough as they are, a file is cut into them."""
    return FilesConfig(
        eval_path=source.name,
        max_seq_len=min(max_seq_len, _MOST_TOKENS),
        overlong="truncate" if path is None else "split",
        find_near_duplicates=False,
        personal_data="ignore",
        outliers="ignore",
    )
