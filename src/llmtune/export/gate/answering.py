"""Puts the gate's questions to a model: the trained one in this process, an export in a process of its own.

As a program it stands alone: it imports the `runtime.py` of an export's folder and nothing of llmtune, so that what is
asked is what a user runs.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

_SET_PARENT_DEATH_SIGNAL = 1


class AnsweringText(Protocol):
    """What an export says of text."""

    end_token_ids: list[int]
    """Tokens that end an answer."""
    max_positions: int | None
    """Longest text in tokens."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; `special` adds what the tokenizer puts around a text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        ...

    def render(self, messages: list[dict[str, str]]) -> str:
        """A conversation through the chat template, up to where the answer begins."""
        ...


class AnsweringRuntime(Protocol):
    """A model that answers: what `runtime.py` of every export holds as `Runtime(folder)`."""

    text: AnsweringText

    def start(self, input_ids: Sequence[Sequence[int]], attention_mask: Sequence[Sequence[int]]) -> Any:
        """Begin new texts: logits [B, T, V] of rows padded on the left (mask 0, any id); what is there is undefined."""
        ...

    def step(self, tokens: Sequence[int]) -> Any:
        """One token further in each row: logits [B, V] of the token after it."""
        ...


def answer(runtime: AnsweringRuntime, questions: Path, answers: Path) -> None:
    """Put the questions in a folder to a model, and write what it says.

    Args:
        runtime: the model.
        questions: folder with `questions.json`; see `gate.questions`.
        answers: folder that gets `logits_<n>.npy` [T, V] of each prompt alone, `padded.npy` [B, V] of the prompts' last
            tokens in one batch, `greedy.npy` int64 [B, steps] and `gaps.npy` [B, steps] of what it writes on from
            there, `losses.npy` float64 [N] of the supervised tokens, and `text.json`.
    """
    asked = json.loads((questions / "questions.json").read_text(encoding="utf-8"))
    answers.mkdir(parents=True, exist_ok=True)
    pad = asked["pad_token_id"]
    for number, ids in enumerate(asked["prompts"]):
        np.save(answers / f"logits_{number}.npy", _alone(runtime, ids))
    padded, greedy, gaps = _written(runtime, asked["starts"], asked["num_steps"], pad)
    np.save(answers / "padded.npy", padded)
    np.save(answers / "greedy.npy", greedy)
    np.save(answers / "gaps.npy", gaps)
    np.save(answers / "losses.npy", losses(runtime, asked["examples"]))
    told = _text(runtime.text, asked["texts"], asked["conversations"])
    (answers / "text.json").write_text(json.dumps(told), encoding="utf-8")


def losses(runtime: AnsweringRuntime, examples: Sequence[dict[str, list[int]]]) -> np.ndarray:
    """Nats of each supervised token of the examples, float64 [N]."""
    each = [_losses(_alone(runtime, row["input_ids"]), row["labels"]) for row in examples]
    return np.concatenate([np.zeros(0), *each])


def _alone(runtime: AnsweringRuntime, ids: list[int]) -> np.ndarray:
    return np.asarray(runtime.start([ids], [[1] * len(ids)])[0], dtype=np.float32)


def _written(
    runtime: AnsweringRuntime, starts: list[list[int]], num_steps: int, pad: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The likeliest tokens after each start, all in one batch padded on the left; no end token stops it."""
    width = max(map(len, starts))
    rows = [[pad] * (width - len(ids)) + ids for ids in starts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in starts]
    first = logits = np.asarray(runtime.start(rows, mask), dtype=np.float32)[:, -1]
    greedy, gaps = [], []
    for number in range(num_steps):
        best = np.partition(logits, -2, axis=-1)[:, -2:]
        tokens = logits.argmax(-1)
        greedy.append(tokens)
        gaps.append(np.abs(best[:, 1] - best[:, 0]))
        if number + 1 < num_steps:
            logits = np.asarray(runtime.step(tokens.tolist()), dtype=np.float32)
    return first, np.stack(greedy, axis=1), np.stack(gaps, axis=1)


def _losses(logits: np.ndarray, labels: list[int]) -> np.ndarray:
    """Nats of each supervised token of one example: logits [T, V], labels [T] with -100 where nothing is learnt."""
    targets = np.asarray(labels[1:])
    places = np.flatnonzero(targets != -100)
    rows = logits[places].astype(np.float64)
    highest = rows.max(-1, keepdims=True)
    total = np.log(np.exp(rows - highest).sum(-1)) + highest[:, 0]
    return total - rows[np.arange(len(places)), targets[places]]


def _text(text: AnsweringText, texts: list[str], conversations: list[list[dict[str, str]]]) -> dict[str, Any]:
    return {
        "end_token_ids": sorted(text.end_token_ids),
        "encoded": [text.encode(one) for one in texts],
        "decoded": [text.decode(text.encode(one)) for one in texts],
        "rendered": [_rendered(text, messages) for messages in conversations],
    }


def _rendered(text: AnsweringText, messages: list[dict[str, str]]) -> dict[str, Any]:
    """A conversation's text and ids; a template may refuse it."""
    try:
        rendered = text.render(messages)
    except Exception:
        return {"refused": True}
    return {"text": rendered, "ids": text.encode(rendered, special=False)}


def serve() -> None:
    """Import the modules that the command line names, once; then answer each request of standard input.

    A request is a line of JSON: folder, module of its `Runtime`, questions, answers, options. Each is answered in a
    process of its own, forked before any library starts a thread; its exit status is the line that comes back.
    """
    _end_with_parent()
    for name in sys.argv[1:]:
        import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _end_with_parent()
            _answer_request(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _end_with_parent() -> None:
    """Let the kernel end this process with the one that started it, however that ends."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _answer_request(folder: str, module: str, questions: str, answers: str, options: dict[str, Any]) -> NoReturn:
    """Answer with the `Runtime` of a folder and end this process; what went wrong is left in `error.txt`."""
    try:
        sys.path.insert(0, folder)
        runtime = import_module(module).Runtime(Path(folder), **options)
        answer(runtime, Path(questions), Path(answers))
    except BaseException as error:
        Path(answers).mkdir(parents=True, exist_ok=True)
        (Path(answers) / "error.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    serve()
