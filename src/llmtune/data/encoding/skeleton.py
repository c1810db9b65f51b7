"""What a template writes around the turns of a plain conversation, so that one rendering is enough to tell them apart.

A skeleton is learnt from a made-up conversation and never trusted: it counts only where it gives a conversation's
rendering to the letter.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmtune.data.encoding.chat_template import ChatTemplate, TemplateRefusal, Turns
from llmtune.data.encoding.layout import Draft, Segment

_ROLES = ("user", "assistant") * 3
_FRAME = " \n{} \n"
_START = ""
"""Role that stands before the first turn."""


@dataclass(frozen=True)
class Skeleton:
    """The text between the contents of a template's turns."""

    between: Mapping[tuple[str, str], str]
    """By the roles before and after; `_START` before the first."""
    end: Mapping[str, str]
    """What closes a conversation, by its last role."""
    stripped: frozenset[str]
    """Roles whose contents the template strips."""
    opening: str
    """What the assistant's turns have before their content and the generation prompt doesn't."""
    prompted: str
    """What the generation prompt says beyond the start of the assistant's turns, such as the start of thinking; given
    where a turn's content starts with it."""

    def cut(self, turns: Turns, whole: str) -> Draft | None:
        """Segments of a conversation of plain turns; None where the skeleton doesn't give its rendering exactly."""
        pieces: list[str] = []
        role = _START
        for turn in turns:
            between = self.between.get((role, turn["role"]))
            if between is None:
                return None
            role = turn["role"]
            content = turn["content"]
            pieces += (between, content.strip() if role in self.stripped else content)
        end = self.end.get(role)
        if end is None or "".join(pieces) + end != whole:
            return None
        return self._segments(turns, pieces, whole)

    def _segments(self, turns: Turns, pieces: list[str], whole: str) -> Draft:
        segments: Draft = []
        done = place = 0
        closing = len(self.end["assistant"])
        for number, turn in enumerate(turns):
            place += len(pieces[2 * number])
            length = len(pieces[2 * number + 1])
            if turn["role"] == "assistant":
                border, after = place - len(self.opening), place + length + closing
                if self.prompted and whole.startswith(self.prompted, place):
                    border = place + len(self.prompted)
                if border > done:
                    segments.append(Segment(whole[done:border], False))
                segments.append(Segment(whole[border:after], True))
                done = after
            place += length
        if done < len(whole):
            segments.append(Segment(whole[done:], False))
        return segments


class Skeletons:
    """A template's skeletons, of conversations with and without a system prompt.

    Args:
        template: the template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._searched_for = template.searched_for
        self._by_system = {has: _learn(template, has_system=has) for has in (False, True)}

    def cut(self, turns: Turns, whole: str) -> Draft | None:
        """Segments of a conversation of plain turns, given its rendering; None where they aren't known for sure."""
        skeleton = self._by_system[bool(turns) and turns[0]["role"] == "system"]
        if skeleton is None:
            return None
        if any(text in turn["content"] for text in self._searched_for for turn in turns):
            return None
        return skeleton.cut(turns, whole)


def _learn(template: ChatTemplate, *, has_system: bool) -> Skeleton | None:
    roles = (("system",) if has_system else ()) + _ROLES
    contents = [f"Qx{number}xQ" for number in range(len(roles))]
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    framed = [{"role": turn["role"], "content": _FRAME.format(turn["content"])} for turn in turns]
    try:
        whole = template.render(turns)
        between = _between(roles, contents, whole)
        ends = [whole[whole.rindex(contents[-1]) + len(contents[-1]) :]]
        without_last = template.render(turns[:-1])
        ends.append(without_last[without_last.rindex(contents[-2]) + len(contents[-2]) :])
        opening, prompted = _prompt(template, turns, whole)
        in_frames = template.render(framed)
    except (TemplateRefusal, ValueError):
        return None
    loose = {turn["role"] for turn in framed if turn["content"] in in_frames}
    end: dict[str, str] = {"assistant": ends[0], "user": ends[1]}
    skeleton = Skeleton(between, end, frozenset(roles) - loose, opening, prompted)
    followed = between.get(("assistant", "user"), "")
    if not (followed.startswith(ends[0]) and between[("user", "assistant")].endswith(opening)):
        return None
    return skeleton if skeleton.cut(turns, whole) and skeleton.cut(framed, in_frames) else None


def _between(roles: tuple[str, ...], contents: list[str], whole: str) -> dict[tuple[str, str], str]:
    """The text before each turn's content.

    Raises:
        ValueError: the template writes contents not at all, twice, or in another order, or not always the same.
    """
    found: dict[tuple[str, str], str] = {}
    done = 0
    for pair, content in zip(zip((_START, *roles), roles, strict=False), contents, strict=True):
        place = whole.index(content, done)
        if whole.count(content) > 1 or found.setdefault(pair, whole[done:place]) != whole[done:place]:
            raise ValueError
        done = place + len(content)
    return found


def _prompt(template: ChatTemplate, turns: Turns, whole: str) -> tuple[str, str]:
    """What each turn of the assistant has between generation prompt and content, and the prompt beyond that border.

    Raises:
        ValueError: they differ from turn to turn, or the conversation up to a turn doesn't stay as it was.
    """
    found: set[tuple[str, str]] = set()
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        place = whole.index(turn["content"])
        before = template.render(turns[:number], prompt=True)
        after = template.render(turns[: number + 1])
        if not whole.startswith(after) or not (whole.startswith(before) or before.startswith(whole[:place])):
            raise ValueError
        found.add((whole[len(before) : place], before[place:]))
    if len(found) > 1:
        raise ValueError
    return found.pop()
