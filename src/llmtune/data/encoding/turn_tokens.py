"""Special tokens that open and close turns: where the template ends a turn, and what only it may write."""

import json
import re
from collections.abc import Mapping
from typing import Any

from llmtune.data.encoding.chat_template import ChatTemplate, TemplateRefusal, Turns
from llmtune.data.encoding.layout import Draft, Segment

_PROBE = ({"role": "user", "content": "Qx0xQ"}, {"role": "assistant", "content": "Qx1xQ"})
_FIRST_MARK = 0xF0000
_SPOKEN = ("content", "reasoning_content", "reasoning", "thinking")


class TurnTokens:
    """The tokens of one template.

    Args:
        template: the template.
        special_tokens: id and spelling of every token that isn't text.
        end_token: token that ends an example.
    """

    def __init__(self, template: ChatTemplate, special_tokens: Mapping[int, str], end_token: str) -> None:
        known = sorted(set(special_tokens.values()), key=len, reverse=True)
        written = end_token + _rendered(template)
        self.closing_ids = frozenset(
            number for number, token in special_tokens.items() if token in written or token in template.source
        )
        """Tokens that a turn may end with: what the template writes, also in turns of other kinds."""
        self._pattern = re.compile("|".join(re.escape(token) for token in known if token in written))
        closing = _after_marked(template) if template.has_markers else ""
        self._closing = tuple(token for token in known if token == end_token or closing.startswith(token))

    def closing_length(self, text: str, place: int) -> int:
        """Characters of the end-of-turn token that stands at a place in a rendered text; 0 where there is none."""
        return next((len(token) for token in self._closing if text.startswith(token, place)), 0)

    def ends_with_one(self, text: str) -> bool:
        """Whether a text ends with an end-of-turn token, white space aside."""
        return text.rstrip().endswith(self._closing)

    def typed_in(self, turns: Turns) -> bool:
        """Whether a turn's text spells such a token."""
        search = self._pattern.search
        for turn in turns:
            content = turn.get("content")
            if type(content) is str and len(turn) == len(_PROBE[0]):
                if search(content):
                    return True
            elif any(search(text) for key in _SPOKEN for text in _texts(turn.get(key))):
                return True
        return False

    def marked(self, turns: Turns) -> tuple[list[dict[str, Any]], str]:
        """The conversation with such tokens between two marks wherever a turn's text spells one, and the marks."""
        spelled = json.dumps(list(turns), ensure_ascii=False, default=str)
        first = next(code for code in range(_FIRST_MARK, _FIRST_MARK + len(spelled) + 1) if chr(code) not in spelled)
        second = next(code for code in range(first + 1, first + len(spelled) + 2) if chr(code) not in spelled)
        marks = chr(first) + chr(second)
        return [
            {key: self._with_marks(value, marks) if key in _SPOKEN else value for key, value in turn.items()}
            for turn in turns
        ], marks

    def unmarked(self, draft: Draft, marks: str) -> Draft:
        """Segments without the marks; what stood between them is a segment of mere text."""
        pattern = re.compile(f"{marks[0]}({self._pattern.pattern}){marks[1]}|[{marks}]")
        found: Draft = []
        for text, learnt, _ in draft:
            pieces = pattern.split(text)
            found += [Segment(piece, learnt, number % 2 == 1) for number, piece in enumerate(pieces) if piece]
        return found

    def _with_marks(self, value: Any, marks: str) -> Any:
        if isinstance(value, str):
            return self._pattern.sub(lambda found: f"{marks[0]}{found[0]}{marks[1]}", value)
        if isinstance(value, list | tuple):
            return [
                {**part, "text": self._with_marks(part["text"], marks)}
                if isinstance(part, Mapping) and "text" in part
                else part
                for part in value
            ]
        return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [str(part["text"]) for part in value if isinstance(part, Mapping) and "text" in part]
    return []


def _rendered(template: ChatTemplate) -> str:
    """What the template writes in conversations of all kinds, as far as it accepts them."""
    found = []
    for turns in (_PROBE, _PROBE[:1], ({"role": "system", "content": "Qx2xQ"}, *_PROBE)):
        try:
            found.append(template.render(turns, prompt=turns is not _PROBE))
        except TemplateRefusal:
            continue
    return "\n".join(found)


def _after_marked(template: ChatTemplate) -> str:
    """What a template with markers writes right after the assistant's marked text at a conversation's end."""
    try:
        text, spans = template.render_marked(_PROBE)
    except TemplateRefusal:
        return ""
    return text[spans[-1][1] :] if spans else ""
