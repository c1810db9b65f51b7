import pytest

from llmtune.evaluation.samples import sample_prompts

pytestmark = pytest.mark.fast


def test_a_completions_prompt_ends_where_supervision_begins(list_table):
    table = list_table([([5, 6, 7, 8, 9], 3, 4)])
    (prompt,) = sample_prompts(table, 3)
    assert (prompt.example_id, prompt.prompt_ids, prompt.reference_ids) == ("example-0", [5, 6, 7], [8, 9])


def test_a_plain_texts_prompt_is_its_first_half_at_most_32_tokens(list_table):
    table = list_table([([5, 6, 7, 8], 0, 4), (list(range(100)), 0, 4)])
    short, long = sample_prompts(table, 2)
    assert short.prompt_ids == [5, 6]
    assert long.prompt_ids == list(range(32))


def test_samples_are_spread_over_the_split_and_none_twice(list_table):
    table = list_table([([5, 6, 7], 1, 2)] * 9)
    assert [prompt.example_id for prompt in sample_prompts(table, 3)] == ["example-0", "example-4", "example-8"]
    assert len({prompt.example_id for prompt in sample_prompts(table, 50)}) == 9
    assert sample_prompts(table, 0) == []
