"""The Markdown of a comparison: its order, that no name is read as markup, and that a description is short."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up_comparison import HOSTILE, base, comparison, many, methods, row

from llmtune.comparison.markdown import DESCRIPTION_LENGTH, description, markdown
from llmtune.comparison.outcome import MissingRun

pytestmark = pytest.mark.fast


def test_the_verdict_comes_first_then_the_tables_and_the_rest() -> None:
    found = replace(methods(), missing=[MissingRun(name="qlora seed=4", status="FAILED", error="out of memory")])
    text = markdown(found)
    parts = [
        "**At default settings lora",
        "### Quality on",
        "### Cost of training",
        "### Rows against each other",
        "Intervals are 95 %",
        "### To know",
        "- The learning rate was not",
        "### Not counted",
        "- qlora seed=4: FAILED, out of memory",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert (
        "| lora (3 seeds) | 2.0200 (± 0.0200) | 98.0 % (96.6 to 99.4 %) | **good enough** | 7.538 (7.389 to 7.691)"
        in text
    )
    assert "| full (against lora) | −0.0200 (± 0.0150) | 0.012 | **full** |" in text


def test_a_table_has_as_many_cells_in_every_line() -> None:
    hostile = [base(), row(HOSTILE, {}, 2.0), row("a\nb | c", {}, 2.1)]
    lines = [line for line in markdown(comparison(axes=[], rows=hostile)).splitlines() if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(lines) == 5 and len(counts) == 1


def test_no_text_is_read_as_markup() -> None:
    found = comparison(
        axes=[],
        title=HOSTILE,
        rows=[row(HOSTILE, {}, 2.0)],
        verdict=HOSTILE,
        notes=[HOSTILE],
        missing=[MissingRun(name=HOSTILE, status="FAILED", error=HOSTILE)],
    )
    text = markdown(found)
    assert text.count("script") == 2 * 6  # title, verdict, row, note, and the job's name and error
    assert "<" not in text and not re.search(r"(?<!\\)[`\[]", text)
    assert r"\`\*\_\[a\](http://b.c)" in text
    assert "learning_rate" in markdown(comparison(axes=[], rows=[row("learning_rate=1", {}, 2.0)]))


def test_reasons_not_to_rank_come_before_all_else() -> None:
    text = markdown(replace(methods(), unfair=["Other test sets."]))
    assert text.index("**Not ranked:**\n\n- Other test sets.") < text.index("**At default")
    assert "**good enough**" not in text and "against" not in text


def test_a_reason_that_the_verdict_gives_is_not_given_twice() -> None:
    found = replace(methods(), unfair=["The sets differ."], verdict="Nothing is ranked: the sets differ.")
    assert markdown(found).lower().count("the sets differ") == 1


def test_pairs_that_are_not_shown_are_not_counted_as_left_out() -> None:
    one = [replace(pair, difference=replace(pair.difference, basis="examples")) for pair in many(14).pairs]
    found = replace(many(14), pairs=one, notes=["n" * 500] * 30)
    assert len(markdown(found)) > DESCRIPTION_LENGTH and "pair" not in description(found)


def test_a_short_comparison_is_described_whole() -> None:
    assert description(methods()) == markdown(methods()).partition("\n\n")[2]


def test_a_description_leaves_out_the_pairs_first_and_says_so() -> None:
    found = many(14)
    assert len(markdown(found)) > DESCRIPTION_LENGTH > len(description(found))
    assert "Left out here: 91 pairs of rows. The whole of it" in description(found)
    assert description(found).count("| method.name=lora") == 2 * 14


def test_then_rows_go_from_the_last_that_does_not_stand_for_its_method() -> None:
    found = many(40)
    chosen = [replace(entry, is_chosen=entry is found.rows[-1]) for entry in found.rows]
    text = description(replace(found, rows=chosen))
    kept = re.findall(
        r"^\| (base model|method\.name=lora method\.rank=\d+)", text.partition("### Cost")[0], re.MULTILINE
    )
    assert 5 < len(kept) < 41
    assert kept[0] == "base model" and kept[-1] == f"method.name=lora method.rank={2**39}"
    assert kept[1:-1] == [f"method.name=lora method.rank={2**number}" for number in range(len(kept) - 2)]
    assert f"Left out here: {41 - len(kept)} rows, 780 pairs of rows." in text


@pytest.mark.parametrize("size", [1, 50, 400])
def test_a_description_is_always_short_enough(size: int) -> None:
    found = replace(
        many(40),
        title="t" * size,
        verdict="v" * 100 * size,
        notes=["n" * size] * size,
        unfair=["u" * size] * 20,
        missing=[MissingRun(name="m" * size, status="FAILED", error="e" * size)] * size,
    )
    text = description(found)
    assert len(text) < DESCRIPTION_LENGTH
    assert text.startswith("**Not ranked:**") and "comparison.html" in text
