"""Examples as the model sees them: token by token, with those apart that are trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from llmtune.pages.elements import Content, Html, element, joined, visible
from llmtune.pages.numbers import counted

_FIRST, _LAST, _CUT = 260, 80, 16
"""Tokens of an example that the page shows: at its start, at its end, and of those that were cut off."""
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
    tokens: tuple[tuple[str, bool], ...]
    """Each token's text, and whether it is trained on."""
    cut: tuple[str, ...] = ()
    """Texts of the tokens that were cut off its end."""
    special: frozenset[str] = frozenset()
    """Texts of tokens that have a meaning of their own, such as the end of a turn."""


def legend() -> Html:
    """What the looks of tokens mean."""
    samples = (
        (element("mark", element("i", "answer")), "trained on: its loss counts"),
        (element("i", "question"), "read only: no loss"),
        (element("i", "<end>", class_="special"), "special token"),
        (element("s", element("i", "more")), "cut off: never seen"),
        (element("i", element("span", "·↵⇥", class_="blank")), "space, new line, tab"),
    )
    entries = (element("li", element("span", sample, class_="sample"), said) for sample, said in samples)
    return element("ul", *entries, class_="legend")


def drawn(example: ShownExample) -> Html:
    """An example with each token apart; of a long one its start and its end."""
    trained = sum(is_trained for _, is_trained in example.tokens)
    said = f"{SPLIT_NAMES[example.split]}: {counted(len(example.tokens), 'token')}, {trained:,} trained on"
    where = element("div", element("h3", example.source), element("span", said), class_="where")
    return joined(where, element("div", *_parts(example), class_="tokens"))


def in_terminal(example: ShownExample) -> Text:
    """An example as text of limited length: green and between ⟦ and ⟧ what is trained on."""
    text = Text(f"{SPLIT_NAMES[example.split]} example {example.source} (⟦green⟧: trained on)\n")
    room = _CHARACTERS
    for is_trained, tokens in groupby(example.tokens, lambda token: token[1]):
        part = visible("".join(token for token, _ in tokens))
        style = "green" if is_trained else "dim"
        text.append(f"⟦{part[:room]}⟧" if is_trained else part[:room], style=style)
        room -= len(part)
        if room <= 0:
            text.append(" …", style="dim")
            return text
    if example.cut:
        text.append(f" ✂ {counted(len(example.cut), 'token')} cut off", style="red")
    return text


def _parts(example: ShownExample) -> Iterator[Html]:
    tokens = example.tokens
    hidden = tokens[_FIRST:-_LAST]
    if not hidden:
        yield from _runs(tokens, example.special)
    else:
        yield from _runs(tokens[:_FIRST], example.special)
        trained = sum(is_trained for _, is_trained in hidden)
        yield element("span", f"… {counted(len(hidden), 'token')} not shown, {trained:,} trained on …", class_="gap")
        yield from _runs(tokens[-_LAST:], example.special)
    if example.cut:
        yield element("span", f"✂ cut here, {counted(len(example.cut), 'token')} lost", class_="scissors")
        yield element("s", *(_token(text, example.special) for text in example.cut[:_CUT]))
        if len(example.cut) > _CUT:
            yield element("span", f"… {len(example.cut) - _CUT:,} more", class_="gap")


def _runs(tokens: Sequence[tuple[str, bool]], special: frozenset[str]) -> Iterator[Html]:
    for is_trained, run in groupby(tokens, lambda token: token[1]):
        shown = joined(_token(text, special) for text, _ in run)
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
