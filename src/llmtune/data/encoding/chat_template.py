"""A chat template, rendered as transformers renders it."""

import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError, nodes

Turns = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SEARCHES = {
    "split",
    "rsplit",
    "partition",
    "rpartition",
    "startswith",
    "endswith",
    "find",
    "index",
    "replace",
    "count",
}
_NUM_KEYS = 2
_DATE = date(2024, 7, 26)
"""What templates that write today's date get: the same data every day. Llama 3.2's own where it can't ask."""


class TemplateRefusal(Exception):
    """The template can't render a conversation. The message never quotes the conversation."""


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja source.
        tokens: special tokens by the names that templates use.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self.source = source
        self._tokens: dict[str, Any] = {**tokens, "strftime_now": _DATE.strftime}
        self._compiled = compile_template(source)
        self.has_markers = _MARKER.search(source) is not None

    def render(self, turns: Turns, tools: Tools = None, *, prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            turns: the conversation.
            tools: what the assistant may call.
            prompt: whether the start of the assistant's next turn is added.

        Raises:
            TemplateRefusal: the template fails on it.
        """
        try:
            if not tools and is_plain(turns):
                # transformers' own preparation changes nothing in such turns, and takes as long as the rendering
                return self._compiled.render(
                    messages=turns, tools=None, documents=None, add_generation_prompt=prompt, **self._tokens
                )
            return self._render(turns, tools, prompt=prompt)[0]
        except Exception as error:
            raise TemplateRefusal(self._reason(error)) from error

    def render_marked(self, turns: Turns, tools: Tools = None) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and from where to where the template marks it as the assistant's.

        Raises:
            TemplateRefusal: the template fails on it.
        """
        try:
            return self._render(turns, tools, prompt=False, return_assistant_tokens_mask=True)
        except Exception as error:
            raise TemplateRefusal(self._reason(error)) from error

    @cached_property
    def searched_for(self) -> tuple[str, ...]:
        """Strings that the template looks for in a turn's text, such as the end of its thinking."""
        tree = self._compiled.environment.parse(self.source)
        found: set[Any] = set()
        for compare in tree.find_all(nodes.Compare):
            if any(operand.op in ("in", "notin") for operand in compare.ops):
                found.add(_constant(compare.expr))
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Getattr) and call.node.attr in _SEARCHES:
                found.update(map(_constant, call.args))
        for filtered in tree.find_all(nodes.Filter):
            if filtered.name in _SEARCHES:
                found.update(map(_constant, filtered.args))
        # words are the names of a turn's keys and roles
        return tuple(sorted(text for text in found if text and text.strip() and not text.isidentifier()))

    def _render(self, turns: Turns, tools: Tools, *, prompt: bool, **options: bool) -> Any:
        from transformers.utils.chat_template_utils import render_jinja_template

        messages = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
        rendered, spans = render_jinja_template(
            conversations=[messages],
            tools=[dict(tool) for tool in tools] if tools else None,
            chat_template=self.source,
            add_generation_prompt=prompt,
            **options,
            **self._tokens,
        )
        return rendered[0], spans[0] if spans else []

    def _reason(self, error: Exception) -> str:
        message = str(error)
        if isinstance(error, TemplateError) and message in self._literals:
            return f"the chat template refuses the conversation: {' '.join(message.split())}"
        return f"the chat template refuses the conversation ({type(error).__name__})"

    @cached_property
    def _literals(self) -> frozenset[Any]:
        """What the template says in its own words; anything else in a message may stem from the conversation."""
        tree = self._compiled.environment.parse(self.source)
        return frozenset(node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))


def compile_template(source: str) -> Template:
    """A template compiled as transformers does it, once for each source.

    Raises:
        TemplateSyntaxError: it isn't Jinja.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(source)


def is_plain(turns: Turns) -> bool:
    """Whether each turn is a role and a string."""
    return all(
        type(turn) is dict
        and len(turn) == _NUM_KEYS
        and type(turn.get("content")) is str
        and type(turn.get("role")) is str
        for turn in turns
    )


def _constant(node: nodes.Node) -> str | None:
    value = node.value if isinstance(node, nodes.Const) else None
    return value if isinstance(value, str) else None
