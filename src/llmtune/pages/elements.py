"""HTML and SVG elements whose text is always escaped."""

import re
import unicodedata
from collections.abc import Iterable

_VOID = {"meta", "wbr"}
_EMPTY = {"line", "rect"}
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\ufffe\uffff]"
)
"""Control characters, those that turn the direction of what follows or have no width, and halves of characters."""
_PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421}
_ENTITIES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;", ord("'"): "&#39;"}


class Html(str):
    """Markup that is put into a page as it is; any other text is escaped."""

    __slots__ = ()


Content = str | Html | None | Iterable["Content"]


def visible(text: str) -> str:
    """The text with a sign in place of each character that would not be seen, or would disturb what is around it."""
    return _UNSEEN.sub(_sign, text)


def escaped(text: str) -> Html:
    """The text as markup that shows it."""
    return Html(visible(text).translate(_ENTITIES))


def joined(*content: Content) -> Html:
    """All content as one piece of markup; None is nothing, text that isn't `Html` is escaped."""
    return Html("".join(_pieces(content)))


def element(name: str, /, *content: Content, **attributes: str | int | float | bool | None) -> Html:
    """An element.

    Args:
        name: its tag.
        content: what stands in it.
        attributes: by name; underscores stand for hyphens, one at the end is left away (`class_`). True is an attribute
            without a value; False and None leave it out.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    inner = joined(*content)
    if name in _VOID:
        return Html(f"<{name}{written}>")
    if name in _EMPTY and not inner:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{inner}</{name}>")


def _pieces(content: Iterable[Content]) -> Iterable[str]:
    for piece in content:
        if isinstance(piece, Html):
            yield piece
        elif isinstance(piece, str):
            yield escaped(piece)
        elif piece is not None:
            yield from _pieces(piece)


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{escaped(text)}"'


def _sign(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code in _PICTURES:
        return chr(_PICTURES[code])
    if unicodedata.category(found.group()) == "Cs":
        return "\ufffd"
    return f"⟨U+{code:04X}⟩"
