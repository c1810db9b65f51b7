"""The stages by name."""

from collections.abc import Callable, Mapping

from llmtune.stages import evaluate, export, prepare, train
from llmtune.stages.context import RunContext

RECIPES: Mapping[str, Callable[[RunContext], None]] = {
    "prepare": prepare.run,
    "train": train.run,
    "evaluate": evaluate.run,
    "export": export.run,
}
"""Stage name to the function that does it."""
