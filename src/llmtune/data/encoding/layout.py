"""An example as text, cut into what is learnt and what is given."""

from dataclasses import dataclass, field
from typing import NamedTuple

from llmtune.data.records import Record


class Segment(NamedTuple):
    """A piece of an example's text; it becomes tokens by itself, so that no token reaches over its borders."""

    text: str
    learnt: bool
    is_typed: bool = False
    """Whether special tokens that are spelled in it are mere text."""


Draft = list[Segment]
"""An example yet to become tokens; the segments' texts joined are its text, none is empty."""


@dataclass(slots=True)
class Layout:
    """What a record's text is."""

    drafts: list[Draft] = field(default_factory=list)
    """One, or one for each of an assistant's turns."""
    is_chat: bool = False
    """Whether a chat template made it, which then decides on start and end tokens."""
    closing_ids: frozenset[int] = frozenset()
    """Special tokens that the chat template may end a turn with."""
    by_turn: bool = False
    drops_thinking: bool = False
    refusal: str | None = None
    """Why the record can't be laid out; never quotes it."""


def layout_without_template(record: Record) -> Layout:
    """A record that isn't a conversation, as it stands or, for an instruction, under headings."""
    if record.text is not None:
        return Layout([[Segment(record.text, True)]])
    prompt = record.prompt or ""
    if record.is_instruction:
        system = f"{record.system}\n\n" if record.system else ""
        prompt = f"{system}### Instruction:\n{prompt}\n\n### Response:\n"
    draft = [Segment(prompt, False), Segment(record.completion or "", True)]
    return Layout([[segment for segment in draft if segment.text]])


def instruction_turns(record: Record) -> list[dict[str, str]]:
    """An instruction and its answer as a conversation."""
    turns = [("system", record.system), ("user", record.prompt), ("assistant", record.completion)]
    return [{"role": role, "content": content or ""} for role, content in turns if content or role != "system"]
