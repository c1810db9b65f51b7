"""Puts the gate's questions to a model: the trained one in this process, an export in a process of its own.

As a program it stands alone: it imports the `runtime.py` of an export's folder and nothing of llmtune, so that what is
asked is what a user runs.
"""

import ctypes
import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

_SET_PARENT_DEATH_SIGNAL = 1
_ROWS_AT_ONCE = 64
_IDLE_SECONDS = 600


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

    @property
    def text(self) -> AnsweringText:
        """Its tokenizer."""
        ...

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
        answers: folder that gets `logits_<n>.npy` [T, V] of each prompt alone, `long.npy` [n, V] of the end of a text
            beyond the attention's window, `padded.npy` [B, V] of the starts' last tokens in one batch, `greedy.npy`
            int64 [B, steps] and `gaps.npy` [B, steps] of what it writes on from there, `cache_kl.npy` float64
            [B, steps] of those steps against its own pass over the whole text, `losses.npy` float64 [N] of the
            supervised tokens, and `text.json`.
    """
    asked = json.loads((questions / "questions.json").read_text(encoding="utf-8"))
    answers.mkdir(parents=True, exist_ok=True)
    pad = asked["pad_token_id"]
    for number, ids in enumerate(asked["prompts"]):
        np.save(answers / f"logits_{number}.npy", _alone(runtime, ids))
    if asked["long"]:
        np.save(answers / "long.npy", _alone(runtime, asked["long"])[-asked["num_long"] :])
    steps, greedy = _written(runtime, asked["starts"], asked["num_steps"], pad)
    best = np.partition(steps, -2, axis=-1)[..., -2:]
    np.save(answers / "padded.npy", steps[:, 0])
    np.save(answers / "greedy.npy", greedy)
    np.save(answers / "gaps.npy", best[..., 1] - best[..., 0])
    np.save(answers / "cache_kl.npy", _cache_kl(runtime, asked["starts"], greedy, steps))
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
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens after each start, all in one batch padded on the left; no end token stops it.

    Returns:
        Logits [B, steps, V] that each was taken from, and the tokens int64 [B, steps].
    """
    width = max(map(len, starts))
    rows = [[pad] * (width - len(ids)) + ids for ids in starts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in starts]
    logits = [np.asarray(runtime.start(rows, mask), dtype=np.float32)[:, -1]]
    for _ in range(num_steps - 1):
        logits.append(np.asarray(runtime.step(logits[-1].argmax(-1).tolist()), dtype=np.float32))
    steps = np.stack(logits, axis=1)
    return steps, steps.argmax(-1)


def _cache_kl(runtime: AnsweringRuntime, starts: list[list[int]], greedy: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """KL in nats, [B, steps], of the steps through the cache from the model's own pass over each whole text alone."""
    found = []
    for ids, tokens, stepped in zip(starts, greedy, steps, strict=True):
        whole = _alone(runtime, [*ids, *tokens[:-1].tolist()])[len(ids) - 1 :]
        found.append(kl_divergence(whole, stepped))
    return np.stack(found)


def kl_divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(expected || found) of each position in nats: [T, V] and [T, V] to float64 [T]."""
    parts = []
    for start in range(0, len(expected), _ROWS_AT_ONCE):  # float64 of all rows would be twice the logits again
        left = _log_softmax(expected[start : start + _ROWS_AT_ONCE])
        right = _log_softmax(found[start : start + _ROWS_AT_ONCE])
        parts.append((np.exp(left) * (left - right)).sum(-1))
    return np.concatenate(parts)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


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
    process of its own, forked before anything was computed; its exit status is the line that comes back. Without a
    request for ten minutes this process ends.
    """
    _end_with_parent()
    for name in sys.argv[1:]:
        import_module(name)
    while select.select([sys.stdin], [], [], _IDLE_SECONDS)[0]:
        line = sys.stdin.readline()
        if not line:
            return
        child = os.fork()
        if child == 0:
            _end_with_parent()
            _answer_request(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _end_with_parent() -> None:
    """Let the kernel end this process with the one that started it, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _answer_request(folder: str, module: str, questions: str, answers: str, options: dict[str, Any]) -> NoReturn:
    """Answer with the `Runtime` of a folder and end this process; what went wrong is left in `error.txt`."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)  # what a library prints is no answer
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
