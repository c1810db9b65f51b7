"""Pages that stand alone: one HTML file with its own style, without script, font or picture from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from llmtune.pages.elements import Content, Html, element, joined

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser that reads the page fetches and runs nothing, whatever stands in it."""
_ICONS = {"problem": "▲", "good": "✓", "neutral": "→"}
_FOLDED = 200
"""Lines of a list that the page holds at most; the rest is counted."""


@dataclass(frozen=True)
class Figure:
    """A key figure."""

    label: str
    value: str
    note: str = ""


def write_page(path: Path, title: str, lead: Content, *content: Content) -> None:
    """Write a page.

    Args:
        path: the file; one that is there is replaced.
        title: heading and name of the page.
        lead: what the page is about, in a line beneath the heading.
        content: its parts, from top to bottom.
    """
    style = resources.files("llmtune.pages").joinpath("page.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Html(style)),
    )
    header = element("header", element("h1", title), element("p", lead, class_="lead"))
    body = element("body", element("main", header, *content))
    path.write_text(f"<!doctype html>\n{element('html', head, body, lang='en')}\n", encoding="utf-8")


def section(heading: str, *content: Content, note: Content = None) -> Html:
    """A part of the page with a heading, and a line beneath it that says what is seen."""
    return element("section", element("h2", heading), element("p", note, class_="note") if note else None, *content)


def quiet(entries: Sequence[tuple[str, str]]) -> Html:
    """Parts that have nothing to show, a line each: the heading and what there is to say."""
    lines = [element("div", element("dt", heading), element("dd", text)) for heading, text in entries]
    return element("dl", *lines, class_="quiet") if lines else Html()


def verdict(kind: Literal["problem", "good", "neutral"], heading: str, lines: Sequence[Content] = ()) -> Html:
    """A box that says at one look how things stand.

    Args:
        kind: decides sign and colour.
        heading: the verdict.
        lines: what it rests on, each of its own.
    """
    sign = element("span", _ICONS[kind], class_="sign", aria_hidden="true")
    listed = element("ul", *(element("li", line) for line in lines)) if lines else None
    return element("div", element("p", sign, heading, class_="heading"), listed, class_=f"verdict {kind}")


def figures(*shown: Figure) -> Html:
    """Key figures side by side."""
    return element("dl", *map(_figure, shown), class_="figures")


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Content]]) -> Html:
    """A table that scrolls in a box of its own where it is too wide; its first column reads left, the others right.

    Args:
        caption: what the table shows, for those who hear it.
        columns: headings.
        rows: cells, the first of each naming its row.
    """
    head = element("tr", *(element("th", column, scope="col") for column in columns))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    inner = element("table", element("caption", caption), element("thead", head), element("tbody", *body))
    return element("div", inner, class_="scroll", role="region", aria_label=caption, tabindex=0)


def listing(lines: Sequence[str], count: int | None = None, shown: int = 8) -> Html:
    """Lines of a list: the first in sight, more of them folded away, and how many there are beside.

    Args:
        lines: those that are known.
        count: how many there are in all; None where `lines` are all.
        shown: how many are in sight.
    """
    rest = max(count or 0, len(lines)) - min(len(lines), _FOLDED)
    shown = in_sight(min(len(lines), _FOLDED), shown)
    first, folded = lines[:shown], lines[shown:_FOLDED]
    parts = [_lines(first)]
    if folded:
        parts.append(element("details", element("summary", f"show {len(folded):,} more"), _lines(folded)))
    if rest:
        parts.append(element("p", f"and {rest:,} more", class_="more"))
    return joined(parts)


def in_sight(count: int, most: int) -> int:
    """How many of so many lines are shown before the rest is folded away: a single one isn't worth a fold."""
    return count if count <= most + 1 else most


def columns(*parts: Content) -> Html:
    """Parts side by side, beneath each other where there is no room."""
    return element("div", *(element("div", part) for part in parts), class_="columns")


def _figure(figure: Figure) -> Html:
    note = element("dd", figure.note, class_="note") if figure.note else None
    return element("div", element("dt", figure.label), element("dd", figure.value, class_="value"), note)


def _lines(lines: Sequence[str]) -> Html:
    return element("ul", *(element("li", line) for line in lines), class_="lines")
