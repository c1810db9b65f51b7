"""What the trained model and each export of it are asked: prompts, texts, conversations, held-out examples."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmtune.data.token_table import TokenTable
from llmtune.models.prompting import pad_token_id

_NUM_PROMPTS = 4
_LONGEST_PROMPT = 128
_NUM_STEPS = 64
_LOGITS = 32 * 2**20
"""Numbers at most that a model's answers to the prompts hold, since they are kept whole."""
_EXAMPLES = 64
_EXAMPLE_TOKENS = 4096


@dataclass(frozen=True)
class Questions:
    """What a model is asked."""

    prompts: list[list[int]]
    """Token ids, from the shortest to the longest."""
    starts: list[list[int]]
    """The prompts' first halves, put in one padded batch and written on from."""
    num_steps: int
    """Tokens that are written on from each start."""
    examples: list[dict[str, list[int]]]
    """`input_ids` and `labels` of examples whose loss is taken."""
    texts: list[str]
    """Texts to turn into token ids and back."""
    conversations: list[list[dict[str, str]]]
    """Conversations to put through the chat template."""
    pad_token_id: int

    def save(self, folder: Path) -> None:
        """Write `questions.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "questions.json").write_text(json.dumps(asdict(self)), encoding="utf-8")


def make_questions(
    table: TokenTable, tokenizer: PreTrainedTokenizerBase, max_positions: int | None, vocabulary: int
) -> Questions:
    """Questions from a split's examples.

    Args:
        table: the split; one example at least.
        tokenizer: the run's.
        max_positions: the longest text that the model reads, in tokens; None for no limit.
        vocabulary: how many logits the model has a token.
    """
    order = np.argsort(np.asarray(table.num_tokens), kind="stable")
    picks = np.unique(np.linspace(0, len(order) - 1, _NUM_PROMPTS).round().astype(int))
    chosen = [table.input_ids(int(order[pick])).tolist() for pick in picks]
    longest = max(2, min(_LONGEST_PROMPT, _LOGITS // vocabulary // len(chosen)))
    if max_positions is not None:
        longest = max(2, min(longest, max_positions // 2))
    prompts = [ids[:longest] for ids in chosen]
    starts = [ids[: max(1, len(ids) // 2)] for ids in prompts]
    room = _NUM_STEPS if max_positions is None else max_positions - max(map(len, starts))
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in chosen]
    return Questions(
        prompts=prompts,
        starts=starts,
        num_steps=min(_NUM_STEPS, room),
        examples=_examples(table, longest=max(_LONGEST_PROMPT, 4 * _LOGITS // vocabulary)),
        texts=texts,
        conversations=_conversations(texts) if tokenizer.chat_template else [],
        pad_token_id=pad_token_id(tokenizer),
    )


def _examples(table: TokenTable, longest: int) -> list[dict[str, list[int]]]:
    """Examples from all over the split, cut to `longest` tokens, within the limits on their number and tokens."""
    lengths = np.asarray(table.num_tokens)
    picks = np.unique(np.linspace(0, len(lengths) - 1, _EXAMPLES).round().astype(int))
    by_chance = np.random.default_rng(0).permutation(picks)
    fits = np.cumsum(lengths[by_chance]) <= _EXAMPLE_TOKENS
    kept = by_chance[: max(1, int(fits.sum()))]
    return [
        {
            "input_ids": table.input_ids(int(row))[:longest].tolist(),
            "labels": table.labels(int(row))[:longest].tolist(),
        }
        for row in kept
    ]


def _conversations(texts: Sequence[str]) -> list[list[dict[str, str]]]:
    """A question alone, one after a system turn, and one after an answer."""
    first, last = texts[0], texts[-1]
    question = {"role": "user", "content": first}
    return [
        [question],
        [{"role": "system", "content": "Answer in one sentence."}, question],
        [question, {"role": "assistant", "content": last}, {"role": "user", "content": "Go on."}],
    ]
