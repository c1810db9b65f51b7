"""Records that can't be read, many at once: each fault is shown once, and none is lost from the count."""

import pytest

from llmtune.data.shaping.refusals import refusal
from llmtune.errors import message_of

pytestmark = pytest.mark.fast

CURE = "mend them"


def lines(error) -> list[str]:
    return message_of(error).split("\n")


def test_a_fault_that_all_rows_share_is_shown_once():
    listed = [f"a.jsonl:{line}: the row has no `x`" for line in range(1, 301)]
    assert lines(refusal(listed, {"the row has no `x`": 300}, CURE)) == [
        "300 problems",
        "  a.jsonl:1: the row has no `x`",
        "  ... and 299 more like it (lines 2 to 300)",
        "  mend them",
    ]
    assert "  ... and 299 more like it (from line 2 on)" in lines(
        refusal(listed[:200], {"the row has no `x`": 300}, CURE)
    )
    others = [*listed[:2], "b.jsonl:7: the row has no `x`"]
    assert "  ... and 2 more like it (from a.jsonl:2 on)" in lines(refusal(others, {"the row has no `x`": 3}, CURE))


def test_numbers_alone_make_no_other_fault_and_two_rows_stand_each_for_itself():
    listed = [f"a:{line}: turn {line} of `messages` is odd" for line in (3, 5, 9)]
    listed += ["a:10: empty", "a:12: empty"]
    by_fault = {"turn N of `messages` is odd": 3, "empty": 2}
    assert lines(refusal(listed, by_fault, CURE)) == [
        "5 problems",
        "  a:3: turn 3 of `messages` is odd",
        "  ... and 2 more like it (lines 5 to 9)",
        "  a:10: empty",
        "  a:12: empty",
        "  mend them",
    ]


def test_of_many_faults_twenty_are_shown_and_the_rest_counted():
    names = [f"fault {chr(97 + number)}" for number in range(26)]
    listed = [f"a:{number}: {name}" for number, name in enumerate(names)]
    found = refusal(listed, dict.fromkeys(names, 1) | {"fault a": 40}, CURE)
    assert lines(found)[0] == "65 problems"
    assert len(found.problems) == 20
    # 26 faults, of which one is of 40 records: 20 first lines and 39 alike are told of.
    assert lines(found)[-2:] == ["  ... and 6 more problems like these", "  mend them"]


def test_one_record_is_one_line():
    assert message_of(refusal(["a:b.jsonl:7: bad: see"], {"bad: see": 1}, CURE)) == "a:b.jsonl:7: bad: see"
