import numpy as np
import pytest
from transformers import AutoTokenizer

from llmtune.export.gate.questions import Reach, make_questions

pytestmark = pytest.mark.fast


class Rows:
    """A split of which only the lengths matter; the first half of an example isn't learnt."""

    def __init__(self, *lengths: int) -> None:
        self.num_tokens = np.array(lengths)

    def __len__(self) -> int:
        return len(self.num_tokens)

    def input_ids(self, index: int) -> np.ndarray:
        return np.full(self.num_tokens[index], 10 + index)

    def labels(self, index: int) -> np.ndarray:
        ids = self.input_ids(index)
        ids[: len(ids) // 2] = -100
        return ids


@pytest.fixture(scope="module")
def tokenizer(assets):
    return AutoTokenizer.from_pretrained(assets / "tiny_llama")


def test_prompts_run_from_the_shortest_to_the_longest_within_the_models_positions(tokenizer):
    rows = Rows(50, 3, 300, 20, 7)
    asked = make_questions(rows, tokenizer, Reach(), 300)
    assert [len(prompt) for prompt in asked.prompts] == [3, 7, 50, 128]
    assert [len(start) for start in asked.starts] == [1, 1, 18, 64]
    assert asked.num_steps == 64
    short = make_questions(rows, tokenizer, Reach(64), 300)
    assert [len(prompt) for prompt in short.prompts] == [3, 7, 32, 32]
    assert [len(start) for start in short.starts] == [1, 1, 12, 16] and short.num_steps == 64 - 16
    assert [len(prompt) for prompt in make_questions(Rows(9), tokenizer, Reach(), 300).prompts] == [9]


def test_a_large_vocabulary_shortens_what_is_kept_whole(tokenizer):
    asked = make_questions(Rows(900, 900, 900, 900), tokenizer, Reach(), 262_144)
    assert sum(map(len, asked.prompts)) * 262_144 <= 32 * 2**20
    assert max(len(example["input_ids"]) for example in asked.examples) * 262_144 == 4 * 32 * 2**20


def test_examples_keep_their_labels_and_stay_within_the_limits(tokenizer):
    asked = make_questions(Rows(*[100] * 200), tokenizer, Reach(), 300)
    assert len(asked.examples) == 2048 // 100
    for example in asked.examples:
        assert example["labels"][:50] == [-100] * 50 and example["labels"][50:] == example["input_ids"][50:]


def test_conversations_are_asked_where_there_is_a_template(tokenizer, assets):
    asked = make_questions(Rows(5, 6), tokenizer, Reach(), 300)
    assert [len(messages) for messages in asked.conversations] == [1, 2, 3]
    plain = AutoTokenizer.from_pretrained(assets / "tiny_gpt2")
    assert make_questions(Rows(5, 6), plain, Reach(), 300).conversations == []


def test_starts_differ_in_length_so_that_rows_are_padded(tokenizer):
    asked = make_questions(Rows(200, 200, 200, 200), tokenizer, Reach(), 300)
    assert [len(start) for start in asked.starts] == [16, 32, 48, 64]
    assert [len(start) for start in make_questions(Rows(100), tokenizer, Reach(), 300).starts] == [25, 50]


@pytest.mark.parametrize(
    ("reach", "vocabulary", "length"),
    [
        (Reach(2048, 100), 300, 132),
        (Reach(2048, None), 300, 0),
        (Reach(64, 100), 300, 0),
        (Reach(None, 4096), 256_000, 0),
    ],
)
def test_a_text_beyond_the_window_is_asked_where_it_fits(tokenizer, reach, vocabulary, length):
    assert len(make_questions(Rows(50, 20), tokenizer, reach, vocabulary).long) == length


def test_examples_are_cut_at_their_beginning_where_nothing_is_learnt(tokenizer):
    (example,) = make_questions(Rows(900), tokenizer, Reach(), 262_144).examples
    assert len(example["labels"]) == 512 and example["labels"][-450:] == example["input_ids"][-450:]
