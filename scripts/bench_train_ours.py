"""llmtune in `bench_train.py`: its command's own pipeline, and a callback that waits between turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bench_train_turns import Step, Turns, Wire
from bench_train_work import Examples, Work, identity, read_examples, words_of

_OTHERS = "it trained on other examples first"
_NOT_IN_A_TURN = 10**6
"""Steps between validations and checkpoints, so that none falls into a turn."""


@dataclass(frozen=True)
class Setting:
    """How llmtune is set for a comparison."""

    as_peers: bool = True
    """With the peers' settings: no dropout, a constant rate, bf16 weights in full fine-tuning; else its defaults."""
    precision: str = "auto"
    """`train.precision`."""


def run_ours(work: Work, wire: Wire, setting: Setting) -> None:
    """Train by the command's own pipeline; a callback more is all that differs from what a user starts."""
    import torch

    from llmtune.arguments import parse
    from llmtune.session import perform
    from llmtune.stages import train as stage

    wire.tell("imported")
    wire.wait_for("build")
    facts: dict[str, Any] = {}
    examples = read_examples(work)
    turns = Turns(wire, work, facts, examples.first)
    train = stage.train

    def train_in_turns(parts: Any, state: Any, callbacks: Sequence[Any]) -> Any:
        return train(parts, state, [*callbacks, _OursInTurns(turns, facts, examples)])

    stage.train = train_in_turns
    on = "single_gpu" if torch.cuda.is_available() else "cpu"
    perform(parse(["train", *words_of(work), *_training_words(work, setting), f"hardware={on}"]))


def _training_words(work: Work, setting: Setting) -> list[str]:
    words = [f"method={work.method}", f"train.learning_rate={work.learning_rate}", "train.num_epochs=100000"]
    words += [f"train.max_steps={work.total_steps}", f"train.precision={setting.precision}"]
    words += [f"train.{kind}_every_steps={_NOT_IN_A_TURN}" for kind in ("validate", "checkpoint")]
    words += [f"train.activation_checkpointing={work.checkpointing}"]
    if not setting.as_peers:
        return words
    words += ["train.schedule=constant", "train.warmup_steps=0", "train.weight_decay=0"]
    if work.method != "full":
        return [*words, "method.dropout=0"]
    return words if setting.precision == "fp32" else [*words, "train.master_dtype=bf16"]


class _OursInTurns:
    """The callback that waits between turns."""

    def __init__(self, turns: Turns, facts: dict[str, Any], examples: Examples) -> None:
        self._turns, self._facts, self._examples = turns, facts, examples

    def on_train_start(self, parts: Any, state: Any) -> None:
        """Note how it computes, and whether its first step is what the others are checked on."""
        self._facts["precision"] = parts.precision.name
        first = [parts.table.input_ids(index).astype(np.int64) for index in parts.plan.step(0, 0).indices]
        if identity(first) != self._examples.first:
            self._facts |= {"first_loss": None, "first_loss_note": _OTHERS}

    def on_step_end(self, parts: Any, state: Any, result: Any) -> None:
        """Count the step."""
        positions = result.num_tokens if parts.settings.packed else self._padded(parts, state)
        self._turns.step_done(Step(result.num_tokens, positions, lambda: result.loss))

    def on_train_end(self, parts: Any, state: Any) -> None:
        """Do nothing."""

    @staticmethod
    def _padded(parts: Any, state: Any) -> int:
        made = parts.plan.step(state.global_step - 1, 0).micro_batches
        return sum(len(batch) * max(int(parts.table.num_tokens[index]) for index in batch) for batch in made)
