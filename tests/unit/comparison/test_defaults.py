"""Which runs may be called the default: those of the composed config, as the project's files have it."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up_comparison import row

from llmtune.comparison.defaults import has_default_rate, has_defaults
from llmtune.comparison.outcome import Row
from llmtune.config.compose import Composition, compose
from llmtune.config.run import RunConfig
from llmtune.config.validate import flatten, to_plain

pytestmark = pytest.mark.fast


def composed(*overrides: str) -> Row:
    """A row whose one run has the config that a command line with these overrides has."""
    config = compose(Composition(overrides=["data.path=x.jsonl", *overrides]))
    assert isinstance(config, RunConfig)
    found = row("x", {"method.name": config.method.name}, 2.0, seeds=(1,))
    return replace(found, runs=(replace(found.runs[0], config=flatten(to_plain(config))),))


@pytest.mark.parametrize(
    ("overrides", "rate", "all_of_them"),
    [
        (("method=full",), True, True),
        (("method=lora", "train.log_every_steps=3", "train.num_epochs=1", "train.micro_batch_size=8"), True, True),
        (("method=lora", "train.batch_unit=tokens", "train.tokens_per_step=4096"), True, True),
        (("method=full", "train.weight_decay=0.1"), True, False),
        (("method=qlora", "method.learning_rate=1e-3"), False, False),
        (("method=lora", "method.rank=256"), True, False),
    ],
)
def test_what_was_typed_is_no_default(overrides, rate, all_of_them) -> None:
    found = composed(*overrides)
    assert (has_default_rate(found), has_defaults(found)) == (rate, all_of_them)


def test_a_key_that_an_older_record_lacks_says_nothing() -> None:
    assert has_defaults(row("lora", {"method.name": "lora"}, 2.0))
