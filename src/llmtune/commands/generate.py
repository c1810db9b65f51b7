"""`generate`: text from a model, for one prompt or in a chat."""

import dataclasses
import sys
from typing import TYPE_CHECKING

from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError
from llmtune.logs import say

if TYPE_CHECKING:
    from llmtune.stages.generate import Writer


def run(config: RunConfig) -> int:
    """Write what `generate` asks for and return the exit status.

    Args:
        config: the composed config, the weights that write among it.

    Raises:
        ConfigError: there is no prompt, and no terminal to chat on.
    """
    asked = config.generate
    if asked.prompt is None and not sys.stdin.isatty():
        raise ConfigError('generate.prompt: is missing; set it, e.g. generate.prompt="Once upon a time".')
    from llmtune.stages.generate import Writer

    writer = Writer(config)
    say(f"model: {writer.name}")
    if asked.prompt is None:
        return _chat(writer, config)
    for number, text in enumerate(writer.write(asked.prompt, asked), 1):
        if asked.num_samples > 1:
            say(f"--- {number} of {asked.num_samples}")
        print(asked.prompt + text, flush=True)
    return 0


def _chat(writer: "Writer", config: RunConfig) -> int:
    """Read lines and answer each until the input ends."""
    asked = dataclasses.replace(config.generate, num_samples=1)
    turns = writer.has_chat_template
    say(
        "a chat: type and press Enter; Ctrl-D ends"
        + ("" if turns else " (no chat template: it goes on from your text)")
    )
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return 0
        if not line.strip():
            continue
        if not turns:
            print(line + writer.write(line, asked)[0], flush=True)
            continue
        messages.append({"role": "user", "content": line})
        answer = writer.answer(messages, asked)
        messages.append({"role": "assistant", "content": answer})
        print(answer, flush=True)
