"""Prompts out of held-out examples, for answers that a person compares."""

from dataclasses import dataclass

import numpy as np

from llmtune.data.token_table import TokenTable

_TEXT_PROMPT_TOKENS = 32


@dataclass(frozen=True)
class SamplePrompt:
    """The start of a held-out example and how it really goes on."""

    example_id: str
    prompt_ids: list[int]
    reference_ids: list[int]


def sample_prompts(table: TokenTable, num_samples: int) -> list[SamplePrompt]:
    """Prompts spread evenly over a split, at most one an example.

    A completion's prompt is all that stands before its first supervised token; a plain text's is its first 32 tokens,
    or its first half where that is shorter.
    """
    count = min(num_samples, len(table))
    return [_sample_prompt(table, int(index)) for index in np.linspace(0, len(table) - 1, count)] if count else []


def _sample_prompt(table: TokenTable, index: int) -> SamplePrompt:
    ids = table.input_ids(index).tolist()
    supervised = np.flatnonzero(table.labels(index) >= 0)
    border = int(supervised[0]) if len(supervised) else len(ids)
    if border <= 1:
        border = max(1, min(_TEXT_PROMPT_TOKENS, len(ids) // 2))
    return SamplePrompt(table.example_id(index), ids[:border], ids[border:])
