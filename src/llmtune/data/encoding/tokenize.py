"""Records become token ids and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

from llmtune.data.encoding.assembly import Assembler, Batch, Drafted
from llmtune.data.encoding.conversation import ConversationLayouts
from llmtune.data.encoding.description import TokenizerDescription
from llmtune.data.encoding.encoders import make_encoder
from llmtune.data.encoding.engine import TextEncoder
from llmtune.data.encoding.example import TokenizedExample
from llmtune.data.encoding.layout import Layout, instruction_turns, layout_without_template
from llmtune.data.encoding.lengths import Cutter
from llmtune.data.records import Record
from llmtune.errors import DataError


@dataclass(frozen=True)
class EncodingOptions:
    """Lengths, in tokens."""

    max_seq_len: int
    overlong: Literal["truncate", "split", "drop"] = "truncate"
    """What happens to an example longer than `max_seq_len`."""
    min_tokens: int | None = None
    max_tokens: int | None = None
    """Bounds of an example before anything is cut; None sets none."""


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """What a record gives."""

    examples: tuple[TokenizedExample, ...]
    """Empty where it is dropped; several where it is split into windows, or into one for each assistant turn."""
    num_tokens: int
    """Tokens before anything was cut; of the longest where there is an example a turn."""
    dropped: str | None = None
    """Why it gives no example."""
    is_mistake: bool = False
    """Whether the record is a bad one: the template refuses it."""
    is_cut: bool = False
    num_cut_tokens: int = 0
    """Tokens that were cut off, those of turns that were cut away whole included."""
    num_windows: int = 1
    """Windows that overlong examples were split into, those without anything to learn included; 1 without a split."""
    by_turn: bool = False
    """Whether each of the assistant's turns is an example of its own."""
    drops_thinking: bool = False
    """Whether that is because the template drops the thinking of earlier turns."""


class ExampleTokenizer:
    """Turns records into tokens.

    Text is supervised as a whole, of prompt and completion only the completion; both end with the end token, which is
    supervised, and start with the token that the tokenizer itself puts at the start, if it does. Conversations are as
    the chat template renders them and the assistant's turns are supervised, their end-of-turn token included;
    instructions are conversations where there is a template. A segment is tokenised by itself, so that no token reaches
    over the border between what is given and what is learnt.

    A special token that is spelled in a text, a prompt or a completion is that token. In a conversation those that open
    and close turns are the template's to write: spelled in a turn's text they are mere text, so that no text can end
    its turn or start another.

    Args:
        description: the tokenizer.
        options: lengths.
        encoder: turns text into ids; None takes the `tokenizers` library.
    """

    def __init__(
        self, description: TokenizerDescription, options: EncodingOptions, encoder: TextEncoder | None = None
    ) -> None:
        self._description = description
        self._options = options
        encoder = make_encoder(description) if encoder is None else encoder
        self._assemble = Assembler(description, encoder)
        self._cutter = Cutter(options.max_seq_len, encoder.decode, list(description.special_tokens))

    def __call__(self, records: Sequence[Record]) -> list[EncodedRecord]:
        """What each record gives, in their order.

        Raises:
            DataError: conversations, but no chat template.
        """
        layouts = [self._layout(record) for record in records]
        batch = self._assemble(layouts)
        ends = np.cumsum([0, *(len(layout.drafts) for layout in layouts)]).tolist()
        return [
            self._encoded(layout, batch, first, after)
            for layout, (first, after) in zip(layouts, pairwise(ends), strict=True)
        ]

    def _layout(self, record: Record) -> Layout:
        if record.messages is not None:
            if self._description.chat_template is None:
                raise DataError(_NO_TEMPLATE)
            return self._conversations(record.messages, record.tools)
        if record.is_instruction and self._description.chat_template is not None:
            return self._conversations(instruction_turns(record))
        return layout_without_template(record)

    @cached_property
    def _conversations(self) -> ConversationLayouts:
        return ConversationLayouts(self._description)

    def _encoded(self, layout: Layout, batch: Batch, first: int, after: int) -> EncodedRecord:
        refusal = layout.refusal or next(filter(None, batch.refusals[first:after]), None)
        if refusal:
            return EncodedRecord((), 0, refusal, is_mistake=True)
        num_tokens = max(batch.num_tokens[first:after], default=0)
        if reason := self._why_out_of_bounds(num_tokens):
            return EncodedRecord((), num_tokens, reason)
        drafted = [batch[number] for number in range(first, after)]
        if num_tokens <= self._options.max_seq_len:
            examples = tuple(TokenizedExample(*draft.tokens) for draft in drafted if draft.num_supervised)
            if not examples:
                return EncodedRecord((), num_tokens, "no supervised token")
            return EncodedRecord(examples, num_tokens, by_turn=layout.by_turn, drops_thinking=layout.drops_thinking)
        return self._shortened(layout, drafted, num_tokens)

    def _why_out_of_bounds(self, num_tokens: int) -> str | None:
        options = self._options
        if options.min_tokens is not None and num_tokens < options.min_tokens:
            return f"fewer than {options.min_tokens} tokens (data.min_tokens)"
        if options.max_tokens is not None and num_tokens > options.max_tokens:
            return f"more than {options.max_tokens} tokens (data.max_tokens)"
        if options.overlong == "drop" and num_tokens > options.max_seq_len:
            return "longer than max_seq_len"
        return None

    def _shortened(self, layout: Layout, drafted: Sequence[Drafted], num_tokens: int) -> EncodedRecord:
        """A record of which at least one example is too long."""
        examples: list[TokenizedExample] = []
        num_cut = num_windows = 0
        for draft in drafted:
            if len(draft.tokens.ids) <= self._options.max_seq_len:
                examples += [TokenizedExample(*draft.tokens)] if draft.num_supervised else []
            elif self._options.overlong == "split":
                windows, count = self._cutter.windows(draft.tokens, draft.first_bytes)
                examples += windows
                num_windows += count
            else:
                cut = self._cutter.truncated(draft.tokens, draft.first_bytes)
                kept = [cut] if cut.num_supervised_tokens else []
                num_cut += len(draft.tokens.ids) - sum(len(example.input_ids) for example in kept)
                examples += kept
        if not examples:
            learnt = any(draft.num_supervised for draft in drafted)
            reason = "no supervised token within max_seq_len" if learnt else "no supervised token"
            return EncodedRecord((), num_tokens, reason)
        return EncodedRecord(
            tuple(examples),
            num_tokens,
            is_cut=num_cut > 0,
            num_cut_tokens=num_cut,
            num_windows=max(1, num_windows),
            by_turn=layout.by_turn,
            drops_thinking=layout.drops_thinking,
        )


_NO_TEMPLATE = (
    "the examples are conversations (`messages`), but the model's tokenizer has no chat template; choose an instruct "
    "or chat variant of the model, name a template's file with data.chat_template, or give the examples as `prompt` "
    "and `completion`"
)
