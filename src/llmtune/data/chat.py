"""Conversations as the chat template renders them, cut into what the assistant says and what it is given."""

from typing import Any

from jinja2 import TemplateError

from llmtune.data.records import Problems, Record
from llmtune.errors import DataError

Segment = tuple[str, bool]
"""A piece of an example's text, and whether its tokens are supervised."""


def require_chat_template(tokenizer: Any) -> None:
    """Check that conversations can be rendered.

    Raises:
        DataError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the examples are conversations (`messages`), but the model's tokenizer has no chat template; choose an "
            "instruct or chat variant of the model, or give the examples as `prompt` and `completion`"
        )


def conversation_segments(record: Record, tokenizer: Any, problems: Problems) -> list[Segment]:
    """Segments of a conversation; joined they are its rendered text, and the assistant's turns are supervised.

    Each assistant turn is what the rendered text gains when the turn is added to the conversation before it, so that
    no markers are needed in the template. What a conversation's end adds after the last turn isn't supervised.

    Returns:
        The segments; empty where a problem was noted: the template refuses the conversation, or renders a turn
        differently once others follow it.
    """
    turns = [dict(turn) for turn in record.messages or ()]
    segments: list[Segment] = []
    done = 0
    try:
        whole = _render(tokenizer, turns, prompt=False)
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = _render(tokenizer, turns[:number], prompt=True)
            after = _render(tokenizer, turns[: number + 1], prompt=False)
            if not (whole.startswith(after) and after.startswith(before) and len(before) >= done):
                problems.add(record.source_path, record.source_line, _UNSTABLE.format(number=number + 1))
                return []
            segments += [(whole[done : len(before)], False), (whole[len(before) : len(after)], True)]
            done = len(after)
    except (TemplateError, TypeError, ValueError) as error:
        reason = f"the chat template refuses the conversation ({type(error).__name__})"
        if isinstance(error, TemplateError):
            reason = f"the chat template refuses the conversation: {error}"
        problems.add(record.source_path, record.source_line, reason)
        return []
    return [segment for segment in [*segments, (whole[done:], False)] if segment[0]]


_UNSTABLE = (
    "the chat template renders turn {number} differently once other turns follow it, so the assistant's tokens can't "
    "be told from the others; give one row an assistant turn, or `prompt` and `completion`"
)


def _render(tokenizer: Any, turns: list[dict[str, Any]], *, prompt: bool) -> str:
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
