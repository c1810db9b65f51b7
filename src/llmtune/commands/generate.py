"""`generate`: text from a model, for one prompt or in a chat."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.config.generate import GenerateConfig
from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError, UserError
from llmtune.logs import say, warn

if TYPE_CHECKING:
    from llmtune.stages.generate import Writer


@dataclasses.dataclass
class _Conversation:
    """A chat so far."""

    turns: list[dict[str, str]] = dataclasses.field(default_factory=list)
    """What was typed and answered, without the turns that no longer fit."""
    is_cut: bool = False
    """Whether some were left out, which is said once."""


def run(config: RunConfig) -> int:
    """Write what `generate` asks for and return the exit status.

    Args:
        config: the composed config, the weights that write among it.

    Raises:
        ConfigError: there is no prompt, and no terminal to chat on.
    """
    asked = config.generate
    if asked.prompt is None and not (sys.stdin and sys.stdin.isatty()):
        raise ConfigError(
            'generate.prompt: is missing; set it, e.g. generate.prompt="Once upon a time" (standard input isn\'t read).'
        )
    from llmtune.stages.generate import Writer
    from llmtune.tracking.dead_runs import mark_dead_runs

    mark_dead_runs(Path(config.runs_dir), config.tracking.uri)
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
    conversation = _Conversation()
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return 0
        if not line.strip():
            continue
        try:
            told = _answer(writer, conversation, line, asked) if turns else line + writer.write(line, asked)[0]
        except UserError as error:
            if type(error) is not UserError:  # the model can't be loaded: no other line would help
                raise
            warn(str(error))
            continue
        print(told, flush=True)


def _answer(writer: "Writer", conversation: _Conversation, line: str, asked: GenerateConfig) -> str:
    """The answer to one more line; the oldest turns go where all of them don't fit. A line that fits nowhere stays out.

    Raises:
        UserError: the line alone fills all of the model's positions.
    """
    turns: list[dict[str, str]] = [*conversation.turns, {"role": "user", "content": line}]
    while True:
        try:
            answer = writer.answer(turns, asked)
            break
        except UserError as error:
            if type(error) is not UserError or len(turns) == 1:
                raise
            del turns[:2]
    if len(turns) <= len(conversation.turns) and not conversation.is_cut:
        conversation.is_cut = True
        warn("the conversation no longer fits the model: its oldest turns are left out from here on")
    conversation.turns = [*turns, {"role": "assistant", "content": answer}]
    return answer
