"""Whether a row was trained as the project's own config files say, so that it may be called the default."""

import re
from collections.abc import Iterator
from typing import Any

from llmtune.comparison.outcome import Row
from llmtune.comparison.rows import NO_BEARING, RATE
from llmtune.config.resources import option_content

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_HOW_LONG_AND_WHERE = tuple(
    f"train.{name}"
    for name in (
        *("num_epochs", "max_steps", "micro_batch_size", "gradient_accumulation_steps", "packing", "precision"),
        *("batch_unit", "tokens_per_step"),
        *("activation_checkpointing", "deterministic", "validate_every_steps", "early_stopping_patience"),
    )
)
"""Keys that say how long and on what is trained, the same for all methods: a person chooses them for the data."""


def has_defaults(row: Row) -> bool:
    """Whether every run has the packaged value of each `method` and `train` key that bears on how a method learns."""
    left_out = (*NO_BEARING, *_HOW_LONG_AND_WHERE)
    expected = {key: value for key, value in _packaged(row) if key == RATE or not key.startswith(left_out)}
    return all(_is(run.config, key, value) for run in row.runs for key, value in expected.items())


def has_default_rate(row: Row) -> bool:
    """Whether every run has the learning rate that is packaged for its method."""
    expected = dict(_packaged(row))
    return all(_is(run.config, RATE, expected.get(RATE)) for run in row.runs)


def _packaged(row: Row) -> Iterator[tuple[str, Any]]:
    method = option_content("method", str(row.method))
    for name, value in method.items():
        yield f"method.{name}", value
    for name, value in option_content("train", "default").items():
        reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        yield f"train.{name}", method.get(reference[1].removeprefix("method.")) if reference else value


def _is(config: Any, key: str, value: Any) -> bool:
    """Whether the config says so; a key that an older record lacks says nothing."""
    return key not in config or config[key] == value
