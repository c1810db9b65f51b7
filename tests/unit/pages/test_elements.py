"""Markup is escaped, whatever stands in it; numbers read as a person writes them."""

import pytest

from llmtune.pages.elements import Html, element, escaped, joined, visible
from llmtune.pages.numbers import counted, number, percent

pytestmark = pytest.mark.fast


def test_text_is_escaped_and_markup_is_not() -> None:
    shown = element("p", "</p><script>a & b", element("b", '"c"'), None, ["d", [Html("<wbr>")]])
    assert shown == "<p>&lt;/p&gt;&lt;script&gt;a &amp; b<b>&quot;c&quot;</b>d<wbr></p>"


def test_attributes_are_escaped_named_and_left_out() -> None:
    shown = element("a", class_='x" onclick="y', aria_label="z", hidden=True, title=None, draggable=False, width=2.50)
    assert shown == '<a class="x&quot; onclick=&quot;y" aria-label="z" hidden width="2.5"></a>'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[0m\x7f", "a␀b␛[0m␡"),
        ("line\nand\ttab", "line\nand\ttab"),
        ("\u202eabc\u2069", "⟨U+202E⟩abc⟨U+2069⟩"),
        ("\ud83d half", "\ufffd half"),
        ("سلام שלום 字", "سلام שלום 字"),
        ("\r\x85", "␍⟨U+0085⟩"),
    ],
)
def test_what_would_not_be_seen_gets_a_sign(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert escaped(text) == shown


def test_every_character_can_be_written() -> None:
    every = "".join(map(chr, range(0x3000))) + "".join(map(chr, range(0xD700, 0xE001)))
    assert joined(every).encode("utf-8")
    assert not set(joined(every)) & {"\x00", "\r", "\u202e", "\u2028", "\ud800", "<", ">", '"'}


def test_void_elements_are_not_closed() -> None:
    assert element("meta", charset="utf-8") + element("rect", x=1) == '<meta charset="utf-8"><rect x="1"/>'
    assert element("rect", element("title", "t"), x=1) == '<rect x="1"><title>t</title></rect>'


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.43, "43 %"),
        (0.0096, "1 %"),
        (0.004, "0.4 %"),
        (0.0004, "0.04 %"),
        (0.00001, "< 0.01 %"),
        (0.996, "99.6 %"),
        (0.9999, "99.99 %"),
        (0.999999, "> 99.99 %"),
    ],
)
def test_a_share_is_never_rounded_to_nothing_or_to_all(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_numbers_have_separators_and_counts_their_word() -> None:
    assert (number(1234567.4), number(3.14159, 2)) == ("1,234,567", "3.14")
    assert [counted(1, "row"), counted(0, "row"), counted(1204, "micro-batch", "micro-batches")] == [
        "1 row",
        "0 rows",
        "1,204 micro-batches",
    ]
