"""Writes text with the model in this folder: python run.py "Once upon a time".

The model itself is in runtime.py, which another program can import as well.
"""

import argparse
import io
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    from runtime import Runtime  # pyright: ignore[reportMissingImports]  # it stands beside this file
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} isn't installed; README.md says what is needed")


def main() -> None:
    """Write text, as the command line says."""
    arguments = parse_arguments()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        answer(arguments)
    except BrokenPipeError:  # as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def answer(arguments: argparse.Namespace) -> None:
    """Load the model and go on from the prompt."""
    runtime = Runtime(Path(__file__).resolve().parent)
    ids = prompt_ids(runtime, arguments)
    room = arguments.max_new_tokens
    limit = runtime.text.max_positions
    if not ids:
        sys.exit("the prompt has no token; give a text")
    if limit is not None and len(ids) >= limit:
        sys.exit(f"the prompt has {len(ids)} tokens and the model reads {limit} at most")
    room = room if limit is None else min(room, limit - len(ids))
    show(runtime, write(runtime, ids, room, arguments.temperature, arguments.seed), as_ids=bool(arguments.ids))


def show(runtime: Any, tokens: Iterator[int], *, as_ids: bool) -> None:
    """Print tokens as they come, as text or as ids."""
    written: list[int] = []
    shown = ""
    for token in tokens:
        written.append(token)
        text = shown + f"{token} " if as_ids else runtime.text.decode(written)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # the rest of a letter is still to come
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print("" if as_ids else runtime.text.decode(written)[len(shown) :])


def parse_arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description="Writes text with the model in this folder.")
    parser.add_argument("prompt", nargs="?", default="", help="text that the model goes on from")
    parser.add_argument("--chat", action="store_true", help="put the prompt as a question, through the chat template")
    parser.add_argument(
        "--ids", type=token_ids, help="token ids such as 12,7,5 in place of a text; prints ids, needs no tokenizer"
    )
    parser.add_argument("--max-new-tokens", type=at_least_one, default=100)
    parser.add_argument("--temperature", type=not_below_zero, default=0.0, help="0 takes the likeliest token each time")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def token_ids(text: str) -> list[int]:
    """Numbers between commas."""
    return [int(part) for part in text.split(",")]


def at_least_one(text: str) -> int:
    """A number of tokens."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 at least")
    return int(text)


def not_below_zero(text: str) -> float:
    """A temperature."""
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError("must be a number from 0 up")
    return float(text)


def prompt_ids(runtime: Any, arguments: argparse.Namespace) -> list[int]:
    """The token ids that the model goes on from."""
    if arguments.ids:
        return arguments.ids
    if arguments.chat:
        question = [{"role": "user", "content": arguments.prompt}]
        return runtime.text.encode(runtime.text.render(question), special=False)
    return runtime.text.encode(arguments.prompt) or runtime.text.end_token_ids[:1]


def write(runtime: Any, ids: list[int], room: int, temperature: float, seed: int) -> Iterator[int]:
    """Each new token, up to an end token."""
    chance = random.Random(seed)
    logits = runtime.start([ids], [[1] * len(ids)])[0][-1]
    for number in range(room):
        token = pick(logits, temperature, chance)
        if token in runtime.text.end_token_ids:
            return
        yield token
        if number + 1 < room:
            logits = runtime.step([token])[0]


def pick(logits: Any, temperature: float, chance: random.Random) -> int:
    """The next token: the likeliest, or one drawn by its probability."""
    if temperature <= 0:
        return int(logits.argmax())
    scores: Sequence[float] = logits.tolist()
    highest = max(scores)
    weights = [math.exp((score - highest) / temperature) for score in scores]
    return chance.choices(range(len(weights)), weights)[0]


if __name__ == "__main__":
    main()
