"""What tells the things in a chart apart: a colour and a shape each, so that nothing rests on colour alone."""

from dataclasses import dataclass

from llmtune.pages.elements import Html, element

NUM_KINDS = 6
"""Things that get a colour and a shape of their own; more are grey."""
_REST = "rest"
_SHAPES = (
    "M-5.5 0A5.5 5.5 0 1 0 5.5 0A5.5 5.5 0 1 0 -5.5 0Z",
    "M-5 -5H5V5H-5Z",
    "M0 -6.5L6 4.5H-6Z",
    "M0 -7L6 0L0 7L-6 0Z",
    "M0 6.5L6 -4.5H-6Z",
    "M-2.2 -6H2.2V-2.2H6V2.2H2.2V6H-2.2V2.2H-6V-2.2H-2.2Z",
)
"""Circle, square, triangle, diamond, triangle on its tip, cross; about as large as each other."""
_SMALL = "M-3.5 0A3.5 3.5 0 1 0 3.5 0A3.5 3.5 0 1 0 -3.5 0Z"


@dataclass(frozen=True)
class Kind:
    """How one thing is drawn in every chart of a page."""

    place: int | None
    """Which of the colours and shapes; None for grey."""

    @property
    def css(self) -> str:
        """Its class in `page.css`."""
        return _REST if self.place is None else f"s{self.place}"


def kinds(count: int) -> list[Kind]:
    """A kind each for so many things, the first in colour."""
    return [Kind(place if place < NUM_KINDS else None) for place in range(count)]


def shape(kind: Kind, x: str | float, y: float, tip: str | None = None) -> Html:
    """The thing's sign, its middle at a place.

    Args:
        kind: which thing.
        x: pixels, or per cent of the width.
        y: pixels.
        tip: what a pointer that rests on it is told.
    """
    drawn = element("path", d=_SMALL if kind.place is None else _SHAPES[kind.place])
    told = element("title", tip) if tip else None
    return element("svg", told, drawn, x=x, y=y, class_=f"dot {kind.css}", overflow="visible")


def key(kind: Kind, *, with_line: bool = False) -> Html:
    """The thing's sign for a legend, on a piece of its line where charts draw one."""
    width = 34 if with_line else 16
    line = element("line", x1=0, x2=width, y1=8, y2=8, class_=f"curve {kind.css}") if with_line else None
    sign = shape(kind, width / 2, 8)
    return element("svg", line, sign, class_="chart key", width=width, height=16, aria_hidden="true")
