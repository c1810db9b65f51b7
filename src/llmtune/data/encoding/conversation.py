"""Conversations as the chat template renders them, cut into what the assistant says and what it is given."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmtune.data.encoding.chat_template import ChatTemplate, TemplateRefusal, Tools, Turns, is_plain
from llmtune.data.encoding.description import TokenizerDescription
from llmtune.data.encoding.layout import Draft, Layout, Segment
from llmtune.data.encoding.skeleton import Skeletons
from llmtune.data.encoding.turn_tokens import TurnTokens

_THINKING = ("reasoning_content", "thinking", "reasoning")
_LETTERS = ("x", "y")
_LONGEST_PROMPT = 200
_COMPARED = 1000
_Span = tuple[int, int]


class ConversationLayouts:
    """Lays out conversations.

    What the assistant says in a turn is what the rendered text gains when the turn is added to the conversation
    before it, or what the template itself marks as the assistant's. Where earlier turns don't stay as they were,
    because the template drops their thinking or for another reason, each of the assistant's turns becomes an example of
    its own, given the conversation up to it.

    Args:
        description: a tokenizer with a chat template.
    """

    def __init__(self, description: TokenizerDescription) -> None:
        self._description = description

    def __call__(self, turns: Turns, tools: Tools = None) -> Layout:
        """A conversation's text; refused where the template can't render it."""
        template = self._for_tools if tools else self._plain
        marks = None
        if template.tokens.typed_in(turns):
            turns, marks = template.tokens.marked(turns)
        try:
            found = template.layout(turns, tools)
        except TemplateRefusal as refusal:
            return Layout(refusal=str(refusal))
        found.closing_ids = template.tokens.closing_ids
        if marks is not None:
            found.drafts = [template.tokens.unmarked(draft, marks) for draft in found.drafts]
        return found

    @cached_property
    def _plain(self) -> "_TemplateLayouts":
        return _TemplateLayouts(self._description.chat_template or "", self._description)

    @cached_property
    def _for_tools(self) -> "_TemplateLayouts":
        source = self._description.tool_template
        return _TemplateLayouts(source, self._description) if source else self._plain


@dataclass(frozen=True, slots=True)
class _Turn:
    """One of the assistant's turns."""

    text: str
    """The conversation up to and with it."""
    border: int
    """Where its own part starts."""
    thought: str
    """What it thought first."""
    spans: tuple[_Span, ...]
    """What of it is learnt."""

    @property
    def own(self) -> str:
        return self.text[self.border :]


class _TemplateLayouts:
    def __init__(self, source: str, description: TokenizerDescription) -> None:
        self._template = ChatTemplate(source, description.template_tokens)
        self.tokens = TurnTokens(self._template, description.special_tokens, description.end_token)

    @cached_property
    def _skeletons(self) -> Skeletons:
        return Skeletons(self._template)

    def layout(self, turns: Turns, tools: Tools) -> Layout:
        if self._template.has_markers:
            return self._marked(turns, tools)
        whole = self._template.render(turns, tools)
        if not tools and is_plain(turns):
            draft = self._skeletons.cut(turns, whole)
            if draft is not None:
                return Layout([draft], is_chat=True)
        found = [self._turn(turns, number, tools, whole) for number in _answers(turns)]
        done = 0
        for turn in found:
            if turn.border < done or not whole.startswith(turn.text):
                return _by_turn(found, whole)
            done = len(turn.text)
        return Layout([_cut(whole, [span for turn in found for span in turn.spans])], is_chat=True)

    def _turn(self, turns: Turns, number: int, tools: Tools, whole: str) -> _Turn:
        text = whole if number + 1 == len(turns) else self._template.render(turns[: number + 1], tools)
        text, border = self._parted(turns, number, tools, text)
        return _Turn(text, border, _thought(turns[number]), ((border, len(text)),))

    def _parted(self, turns: Turns, number: int, tools: Tools, text: str) -> tuple[str, int]:
        """The conversation up to a turn and with it, and where the turn's own part starts.

        That is where the generation prompt ends, or where the content starts if the prompt says more than the turn
        does, as one that opens thinking. Where the turn changes what stands before it (a system prompt that is only
        written before the last question), the prompt as the model will see it takes that place.
        """
        before = None
        if number > 0:  # nobody asks a model without saying anything
            with suppress(TemplateRefusal):
                before = self._template.render(turns[:number], tools, prompt=True)
        if before is not None and text.startswith(before):
            return text, len(before)
        header = text[: self._header_length(turns, number, tools, text)]
        if before is None or before.startswith(header):
            return text, len(header)
        kept, cut = _aligned(before, header)
        return before[:kept] + text[cut:], kept

    def _header_length(self, turns: Turns, number: int, tools: Tools, text: str) -> int:
        """Characters of the conversation up to a turn that don't depend on the turn's content."""
        shared: list[int] = []
        for letter in _LETTERS:
            other = [*turns[:number], {"role": "assistant", "content": letter}]
            try:
                shared.append(_num_shared(text, self._template.render(other, tools)))
            except TemplateRefusal:
                continue
        if len(shared) < len(_LETTERS):
            raise TemplateRefusal(_NO_BORDER.format(number=number + 1))
        return min(shared)

    def _marked(self, turns: Turns, tools: Tools) -> Layout:
        whole, spans = self._template.render_marked(turns, tools)
        answers = _answers(turns)
        if any(thought and thought not in whole for thought in (_thought(turns[number]) for number in answers[:-1])):
            found = [self._marked_turn(turns, number, tools) for number in answers]
            apart = _by_turn(found, whole)
            if apart.drops_thinking:
                return apart
        return Layout([_cut(whole, self._with_ends(whole, spans))], is_chat=True)

    def _marked_turn(self, turns: Turns, number: int, tools: Tools) -> _Turn:
        text, spans = self._template.render_marked(turns[: number + 1], tools)
        parted, border = self._parted(turns, number, tools, text)
        shift = len(parted) - len(text)
        moved = [(start + shift, end + shift) for start, end in self._with_ends(text, spans)]
        own = [(max(start, border), end) for start, end in moved if end > border]
        return _Turn(parted, border, _thought(turns[number]), tuple(own))

    def _with_ends(self, text: str, spans: list[_Span]) -> list[_Span]:
        """Marked spans, each with the end-of-turn token that follows where it holds none itself."""
        return [
            (start, end if self.tokens.ends_with_one(text[start:end]) else end + self.tokens.closing_length(text, end))
            for start, end in spans
        ]


_NO_BORDER = (
    "the chat template renders turn {number} differently from a turn of plain text, so the assistant's tokens can't be "
    "told from the others; give one row an assistant turn, or `prompt` and `completion`"
)


def _answers(turns: Turns) -> list[int]:
    return [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]


def _aligned(before: str, header: str) -> tuple[int, int]:
    """Where two texts end alike, at most a prompt's length before their ends: characters of each up to there."""
    pairs = [(len(before), len(header) - back) for back in range(min(_LONGEST_PROMPT, len(header)))]
    pairs += [(len(before) - back, len(header)) for back in range(min(_LONGEST_PROMPT, len(before)))]
    alike = [
        _num_shared(before[:kept][: -_COMPARED - 1 : -1], header[:cut][: -_COMPARED - 1 : -1]) for kept, cut in pairs
    ]
    return pairs[alike.index(max(alike))]


def _num_shared(text: str, other: str) -> int:
    """Characters that two texts start with alike."""
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if text.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def _thought(turn: Mapping[str, Any]) -> str:
    """What the assistant thought before it answered; empty where nothing is told."""
    found = next((turn[key] for key in _THINKING if turn.get(key)), None)
    if isinstance(found, str):
        return found.strip()
    content = turn.get("content")
    if isinstance(content, str) and "</think>" in content:
        return content.split("</think>")[0].split("<think>")[-1].strip()
    return ""


def _by_turn(found: list[_Turn], whole: str) -> Layout:
    return Layout(
        [_cut(turn.text, turn.spans) for turn in found],
        is_chat=True,
        by_turn=True,
        drops_thinking=any(turn.thought and turn.thought in turn.own and turn.own not in whole for turn in found),
    )


def _cut(text: str, spans: list[_Span] | tuple[_Span, ...]) -> Draft:
    """Segments of a text of which spans are learnt."""
    segments: Draft = []
    done = 0
    for start, end in spans:
        if end <= max(start, done):
            continue
        segments.append(Segment(text[done:start], False))
        segments.append(Segment(text[max(start, done) : end], True))
        done = end
    segments.append(Segment(text[done:], False))
    return [segment for segment in segments if segment.text]
