"""Examples as the model sees them: token by token, with those apart that are trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from llmtune.pages.elements import Content, Html, element, joined, visible
from llmtune.pages.numbers import counted
from llmtune.stages.token_pieces import Piece

_FIRST, _LAST = 260, 80
"""Pieces of an example that the page shows, at its start and at its end."""
_CHARACTERS = 700
SPLIT_NAMES = {"train": "training", "validation": "validation", "test": "test"}
_SIGNS = {"\n": "↵", "\t": "⇥", " ": "·"}


@dataclass(frozen=True)
class ShownExample:
    """An example for a person to look at."""

    source: str
    """Where it comes from, as `path:line`."""
    split: str
    """`train`, `validation` or `test`."""
    pieces: tuple[Piece, ...]
    """Its tokens, those together that make up one character."""
    special: frozenset[str] = frozenset()
    """Texts of tokens that have a meaning of their own, such as the end of a turn."""


def legend() -> Html:
    """What the looks of tokens mean."""
    samples = (
        (element("mark", element("i", "answer")), "trained on: its loss counts"),
        (element("i", "question"), "read only: no loss"),
        (element("i", "<end>", class_="special"), "special token"),
        (element("i", element("span", "·↵⇥", class_="blank")), "space, new line, tab"),
    )
    entries = (element("li", element("span", sample, class_="sample"), said) for sample, said in samples)
    return element("ul", *entries, class_="legend")


def drawn(example: ShownExample) -> Html:
    """An example with each token apart; of a long one its start and its end."""
    count, trained = _num_tokens(example.pieces)
    said = f"{SPLIT_NAMES[example.split]}: {counted(count, 'token')}, {trained:,} trained on"
    where = element("div", element("h3", example.source), element("span", said), class_="where")
    return joined(where, element("div", *_parts(example), class_="tokens"))


def in_terminal(example: ShownExample) -> Text:
    """An example as text of limited length: green and between ⟦ and ⟧ what is trained on."""
    text = Text(f"{SPLIT_NAMES[example.split]} example {example.source} (⟦green⟧: trained on)\n")
    room = _CHARACTERS
    for is_trained, pieces in groupby(example.pieces, lambda piece: piece.is_trained):
        part = visible("".join(piece.text for piece in pieces))
        style = "green" if is_trained else "dim"
        text.append(f"⟦{part[:room]}⟧" if is_trained else part[:room], style=style)
        room -= len(part)
        if room <= 0:
            text.append(" …", style="dim")
            return text
    return text


def _parts(example: ShownExample) -> Iterator[Html]:
    pieces = example.pieces
    hidden = pieces[_FIRST:-_LAST]
    if not hidden:
        yield from _runs(pieces, example.special)
        return
    yield from _runs(pieces[:_FIRST], example.special)
    count, trained = _num_tokens(hidden)
    yield element("span", f"… {counted(count, 'token')} not shown, {trained:,} trained on …", class_="gap")
    yield from _runs(pieces[-_LAST:], example.special)


def _num_tokens(pieces: Sequence[Piece]) -> tuple[int, int]:
    """How many tokens pieces are made of, and how many of those are trained on."""
    return sum(piece.num_tokens for piece in pieces), sum(piece.num_tokens for piece in pieces if piece.is_trained)


def _runs(pieces: Sequence[Piece], special: frozenset[str]) -> Iterator[Html]:
    for is_trained, run in groupby(pieces, lambda piece: piece.is_trained):
        shown = joined(_token(piece.text, special) for piece in run)
        yield element("mark", shown) if is_trained else shown


def _token(text: str, special: frozenset[str]) -> Html:
    is_special = text in special
    return joined(element("i", *_shown(text), class_="special" if is_special else None), element("wbr"))


def _shown(text: str) -> Iterator[Content]:
    """A token's text, white space as signs; a new line is broken after its sign."""
    if not text:
        yield element("span", "∅", class_="blank")
    for is_blank, run in groupby(text, _SIGNS.__contains__):
        part = "".join(run)
        if not is_blank:
            yield part
            continue
        signs = "".join(_SIGNS[character] + ("\n" if character == "\n" else "") for character in part)
        yield element("span", signs, class_="blank")
