"""The exported model in MLflow, text in and text out: `pip install mlflow torch transformers`, nothing of llmtune."""

import importlib
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

DEFAULTS = {"max_new_tokens": 100, "temperature": 0.0, "seed": 1, "chat": False}
"""A temperature of 0 takes the likeliest token each time; `chat` puts prompts as questions, through the template."""
_TOGETHER_TOKENS = 1024
"""Rows times width of the prompts that are read at once: their logits stand in memory."""


class TextModel(PythonModel):
    """Goes on from prompts, each as if it were alone: others beside it, or their order, change nothing."""

    def load_context(self, context: Any) -> None:
        """Load the model by the `runtime.py` that its export was checked with; on a GPU where there is one."""
        folder = Path(context.artifacts["model"])
        self._runtime = _runtime_module(folder).Runtime(folder)

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  # mlflow's own seems to return None
        self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> list[str]:
        """What the model writes after each prompt, up to the token that ends an answer.

        Args:
            context: MLflow's; not looked at.
            model_input: one column of prompts.
            params: any of `DEFAULTS`.
        """
        del context
        asked = {**DEFAULTS, **(params or {})}
        if asked["max_new_tokens"] < 1 or asked["temperature"] < 0:
            raise ValueError("max_new_tokens is 1 or more, temperature 0 or more")
        rows = [self._encode(prompt, chat=asked["chat"]) for prompt in _prompts(model_input)]
        written: dict[int, list[int]] = {}
        for numbers in self._together(rows, asked["max_new_tokens"]):
            texts = self._write([rows[number] for number in numbers], asked)
            written.update(zip(numbers, texts, strict=True))
        return [self._runtime.text.decode(written[number]) for number in range(len(rows))]

    def _encode(self, prompt: str, *, chat: bool) -> list[int]:
        text = self._runtime.text
        if chat:
            ids = text.encode(text.render([{"role": "user", "content": prompt}]), special=False)
        else:
            ids = text.encode(prompt) or text.end_token_ids[:1]
        if not ids:
            raise ValueError("a prompt is empty, and this model has no token to begin with")
        if text.max_positions is not None and len(ids) >= text.max_positions:
            raise ValueError(
                f"a prompt has {len(ids)} tokens, and the model takes {text.max_positions} with its answer"
            )
        return ids

    def _together(self, rows: list[list[int]], max_new_tokens: int) -> Iterator[list[int]]:
        """Numbers of the rows that are written in one batch: of like length, with room for the longest answer."""
        limit = self._runtime.text.max_positions
        batch: list[int] = []
        for number in sorted(range(len(rows)), key=lambda number: len(rows[number])):
            is_full = (len(batch) + 1) * len(rows[number]) > _TOGETHER_TOKENS
            is_long = limit is not None and len(rows[number]) + max_new_tokens > limit
            if batch and (is_full or is_long):
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _write(self, rows: list[list[int]], asked: Mapping[str, Any]) -> list[list[int]]:
        """New tokens of each row, without the one that ends them."""
        width = max(map(len, rows))
        limit = self._runtime.text.max_positions
        room = asked["max_new_tokens"] if limit is None else min(asked["max_new_tokens"], limit - width)
        padded = [[0] * (width - len(ids)) + ids for ids in rows]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in rows]
        logits = self._runtime.start(padded, mask)[:, -1]
        chances = [random.Random(int(asked["seed"])) for _ in rows]
        written: list[list[int]] = [[] for _ in rows]
        going = set(range(len(rows)))
        for number in range(room):
            tokens = [_pick(row, asked["temperature"], chance) for row, chance in zip(logits, chances, strict=True)]
            going -= {row for row in going if tokens[row] in self._runtime.text.end_token_ids}
            for row in going:
                written[row].append(tokens[row])
            if not going or number + 1 == room:
                break
            logits = self._runtime.step(tokens)
        return written


def _runtime_module(folder: Path) -> Any:
    """The folder's `runtime.py` with the files that it imports, which no other program's modules of those names are.

    They are known to nobody else afterwards, so that models of several versions can be loaded; nothing is written
    beside them, where the store's own files may be.
    """
    own = {file.stem for file in folder.glob("*.py")}
    others = {name: sys.modules.pop(name) for name in own if name in sys.modules}
    writes_nothing, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("runtime")
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes_nothing
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(others)


def _prompts(model_input: pd.DataFrame) -> list[str]:
    """The texts in the first column; a cell may hold a list of them, as a dict of lists arrives."""
    cells = model_input.iloc[:, 0].tolist()
    prompts = [prompt for cell in cells for prompt in (cell if isinstance(cell, list) else [cell])]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("a prompt is a text")
    return prompts


def _pick(logits: torch.Tensor, temperature: float, chance: random.Random) -> int:
    """One token of a row's logits [V]; the same draw as in run.py."""
    if temperature == 0:
        return int(logits.argmax())
    scores = logits.double()
    shares = ((scores - scores.max()) / temperature).exp().cumsum(0)
    drawn = int(torch.searchsorted(shares, chance.random() * float(shares[-1]), right=True))
    return min(drawn, len(shares) - 1)


set_model(TextModel())
