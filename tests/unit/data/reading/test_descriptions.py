"""Prose out of the descriptions of installed packages."""

from collections import Counter

import pytest

from llmtune.data.reading import descriptions
from llmtune.data.reading.descriptions import LONGEST, PACKAGES, description_blocks, paragraphs_of

pytestmark = pytest.mark.fast
PROSE = "This is a library that reads a file of numbers, one a line, and says what their mean is."
MIXED = f"""
# A heading that is long enough to be taken for a sentence if it weren't for the mark before it.

[![badge](https://a.b/c.svg)](https://a.b) [![another](https://a.b/d.svg)](https://a.b)

{PROSE}

- {PROSE}

    {PROSE}

```python
# {PROSE}

{PROSE}
```

| a | table of many words that would make a sentence if they stood alone in here. |

Read [the guide](https://a.b/guide) or `the pages <https://a.b>`_ for **all** that there is to
know of :class:`~a.Reader`, please.

Too short a sentence.

It ends with no mark though it has as many words as any other one has in here
"""


def test_only_plain_sentences_are_taken_without_marks_of_style():
    assert list(paragraphs_of(MIXED)) == [
        PROSE,
        "Read the guide or the pages for all that there is to know of a.Reader, please.",
    ]


def test_pieces_are_spread_over_the_packages():
    blocks = description_blocks(24)
    assert len(blocks) == 24 and all(len(block.rows) == 1 for block in blocks)
    rows = [row for block in description_blocks(len(PACKAGES) + 5) for row in block.rows]
    counts = Counter(row.group for row in rows)
    assert len(rows) == len(PACKAGES) + 5 and set(counts) == set(PACKAGES) and max(counts.values()) == 2
    assert all(400 <= len(row.text) <= LONGEST for row in rows)
    assert len({row.text for row in rows}) == len(rows)


def test_packages_that_are_not_there_give_none(monkeypatch):
    monkeypatch.setattr(descriptions, "PACKAGES", ("no-such-package", "pandas"))
    assert [block.path for block in description_blocks(3)] == ["pandas"]
    monkeypatch.setattr(descriptions, "PACKAGES", ("no-such-package",))
    assert description_blocks(3) == []
