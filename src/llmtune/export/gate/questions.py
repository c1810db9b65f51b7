"""What the trained model and each export of it are asked: prompts, texts, conversations, held-out examples."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
_NUM_LONG = 8
_BEYOND_WINDOW = 32
_LONG_LOGITS = 5 * _LOGITS
"""Numbers that the logits of the one long text hold, while it is asked."""
_EXAMPLES = 48
_EXAMPLE_TOKENS = 2048


@dataclass(frozen=True)
class Questions:
    """What a model is asked."""

    prompts: list[list[int]]
    """Token ids, from the shortest to the longest."""
    starts: list[list[int]]
    """Beginnings of the prompts of different lengths, put in one padded batch and written on from."""
    num_steps: int
    """Tokens that are written on from each start."""
    examples: list[dict[str, list[int]]]
    """`input_ids` and `labels` of examples whose loss is taken."""
    texts: list[str]
    """Texts to turn into token ids and back."""
    conversations: list[list[dict[str, str]]]
    """Conversations to put through the chat template."""
    pad_token_id: int
    long: list[int] = field(default_factory=list)
    """A text longer than the window of the model's attention; empty where it has none, or one too long to ask."""
    num_long: int = _NUM_LONG
    """How many of its last positions are kept."""

    def save(self, folder: Path) -> None:
        """Write `questions.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "questions.json").write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class Reach:
    """How much text a model reads, in tokens; None for no limit."""

    max_positions: int | None = None
    window: int | None = None
    """How far back its attention looks in some of its layers."""


def answers_bytes(vocabulary: int) -> int:
    """Room on disk that the answers of one model take at most."""
    return 4 * min(_LOGITS, _NUM_PROMPTS * _LONGEST_PROMPT * vocabulary) + 4 * vocabulary * (_NUM_PROMPTS + _NUM_LONG)


def make_questions(table: TokenTable, tokenizer: PreTrainedTokenizerBase, reach: Reach, vocabulary: int) -> Questions:
    """Questions from a split's examples.

    Args:
        table: the split; one example at least.
        tokenizer: the run's.
        reach: how much the model reads.
        vocabulary: how many logits the model has a token.
    """
    order = np.argsort(np.asarray(table.num_tokens), kind="stable")
    picks = np.unique(np.linspace(0, len(order) - 1, _NUM_PROMPTS).round().astype(int))
    chosen = [table.input_ids(int(order[pick])).tolist() for pick in picks]
    positions = reach.max_positions
    longest = max(2, min(_LONGEST_PROMPT, _LOGITS // vocabulary // len(chosen)))
    if positions is not None:
        longest = max(2, min(longest, positions // 2))
    prompts = [ids[:longest] for ids in chosen]
    starts = _starts(prompts)
    room = _NUM_STEPS if positions is None else positions - max(map(len, starts))
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in chosen]
    return Questions(
        prompts=prompts,
        starts=starts,
        num_steps=max(1, min(_NUM_STEPS, room)),
        examples=_examples(table, longest=max(_LONGEST_PROMPT, 4 * _LOGITS // vocabulary)),
        texts=texts,
        conversations=_conversations(texts) if tokenizer.chat_template else [],
        pad_token_id=pad_token_id(tokenizer),
        long=_long(table, reach, vocabulary),
    )


def _starts(prompts: Sequence[list[int]]) -> list[list[int]]:
    """The n-th of N prompts up to n / N of its half, so that prompts of one length are padded too; two at least."""
    texts = prompts if len(prompts) > 1 else [*prompts, *prompts]
    return [ids[: max(1, len(ids) * number // (2 * len(texts)))] for number, ids in enumerate(texts, start=1)]


def _long(table: TokenTable, reach: Reach, vocabulary: int) -> list[int]:
    """Examples end to end, a little beyond the window."""
    if reach.window is None:
        return []
    wanted = reach.window + _BEYOND_WINDOW
    if wanted * vocabulary > _LONG_LOGITS or wanted > (reach.max_positions or wanted):
        return []
    ids: list[int] = []
    while len(ids) < wanted:
        for row in range(len(table)):
            ids += table.input_ids(row).tolist()
    return ids[:wanted]


def _examples(table: TokenTable, longest: int) -> list[dict[str, list[int]]]:
    """Examples from all over the split within the limits on number and tokens, the last `longest` tokens of each."""
    lengths = np.asarray(table.num_tokens)
    picks = np.unique(np.linspace(0, len(lengths) - 1, _EXAMPLES).round().astype(int))
    by_chance = np.random.default_rng(0).permutation(picks)
    fits = np.cumsum(lengths[by_chance]) <= _EXAMPLE_TOKENS
    kept = by_chance[: max(1, int(fits.sum()))]
    return [
        {
            "input_ids": table.input_ids(int(row))[-longest:].tolist(),
            "labels": table.labels(int(row))[-longest:].tolist(),
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
