import math

import pytest

from llmtune.evaluation.reading import CAVEAT, read_perplexity

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("perplexity", "grade"),
    [
        (1.0, "Excellent"),
        (19.99, "Excellent"),
        (20.0, "Good"),
        (49.9, "Good"),
        (50.0, "Fair"),
        (100.0, "Fair"),
        (100.01, "Poor"),
        (math.inf, "Poor"),
        (math.nan, "Poor"),
    ],
)
def test_borders_of_the_reading(perplexity, grade):
    assert read_perplexity(perplexity).grade == grade


def test_the_caveat_names_what_must_be_equal():
    assert "tokenizer" in CAVEAT and "mask" in CAVEAT and "base" in CAVEAT
