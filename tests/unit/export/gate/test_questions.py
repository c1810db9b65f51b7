import numpy as np
import pytest
from transformers import AutoTokenizer

from llmtune.export.gate.questions import make_questions

pytestmark = pytest.mark.fast


class Rows:
    """A split of which only the lengths matter; the first half of an example isn't learnt."""

    def __init__(self, *lengths: int) -> None:
        self.num_tokens = np.array(lengths)

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
    asked = make_questions(rows, tokenizer, None, 300)
    assert [len(prompt) for prompt in asked.prompts] == [3, 7, 50, 128]
    assert [len(start) for start in asked.starts] == [1, 3, 25, 64]
    assert asked.num_steps == 64
    short = make_questions(rows, tokenizer, 64, 300)
    assert [len(prompt) for prompt in short.prompts] == [3, 7, 32, 32]
    assert short.num_steps == 64 - 16
    assert [len(prompt) for prompt in make_questions(Rows(9), tokenizer, None, 300).prompts] == [9]


def test_a_large_vocabulary_shortens_what_is_kept_whole(tokenizer):
    asked = make_questions(Rows(900, 900, 900, 900), tokenizer, None, 262_144)
    assert sum(map(len, asked.prompts)) * 262_144 <= 32 * 2**20
    assert max(len(example["input_ids"]) for example in asked.examples) * 262_144 == 4 * 32 * 2**20


def test_examples_keep_their_labels_and_stay_within_the_limits(tokenizer):
    asked = make_questions(Rows(*[100] * 200), tokenizer, None, 300)
    assert len(asked.examples) == 4096 // 100
    for example in asked.examples:
        assert example["labels"][:50] == [-100] * 50 and example["labels"][50:] == example["input_ids"][50:]


def test_conversations_are_asked_where_there_is_a_template(tokenizer, assets):
    asked = make_questions(Rows(5, 6), tokenizer, None, 300)
    assert [len(messages) for messages in asked.conversations] == [1, 2, 3]
    plain = AutoTokenizer.from_pretrained(assets / "tiny_gpt2")
    assert make_questions(Rows(5, 6), plain, None, 300).conversations == []
