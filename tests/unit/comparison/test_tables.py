"""What the tables say of each row, against figures that were put in, and how wide they are in a terminal."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from made_up_comparison import base, comparison, cost, estimate, grid, many, methods, row

from llmtune import logs
from llmtune.comparison import wording
from llmtune.comparison.outcome import Comparison, MissingRun, Row
from llmtune.comparison.results import RunCost
from llmtune.comparison.statistics import Interval
from llmtune.comparison.tables import Cell, Table, cost_table, pair_table, quality_table, show_comparison, shows_pairs

pytestmark = pytest.mark.fast


def cells(table: Table, name: str) -> dict[str, str]:
    """Heading to all that a row's cell says."""
    found = next(line for line in table.rows if line[0].value == name)
    return dict(zip(table.columns, (cell.line for cell in found), strict=True))


def test_quality_is_told_row_by_row() -> None:
    table = quality_table(methods())
    assert table.title == "quality on 400 test examples, 52,100 supervised tokens"
    assert [line[0].value for line in table.rows] == ["base model", "full", "lora", "qlora"]
    assert cells(table, "base model") == {
        "": "base model",
        "test loss": "3.0000 ± 0.0600",
        "quality": "0 %",
        "standing": "",
        "perplexity": "20.09 18.92 to 21.33",
        "forgotten": "-",
    }
    assert cells(table, "lora") == {
        "": "lora 3 seeds",
        "test loss": "2.0200 ± 0.0200",
        "quality": "98.0 % 96.6 to 99.4 %",
        "standing": "good enough",
        "perplexity": "7.538 7.389 to 7.691",
        "forgotten": "+0.0590 ± 0.0040",
    }
    assert cells(table, "full")["quality"] == "100 %"
    assert cells(table, "qlora")["standing"] == "undecided"  # the verdict says what would decide


def test_cost_is_told_row_by_row_and_base_models_have_none() -> None:
    table = cost_table(methods())
    assert [line[0].value for line in table.rows] == ["full", "lora", "qlora"]
    assert cells(table, "full") == {
        "": "full",
        "trainable parameters": "125,000,000 100 %",
        "peak memory": "8.00 GiB",
        "tokens/s": "1,000",
        "training time": "1 h 02 min",
        "price": "2.58",
    }
    assert cells(table, "lora")["trainable parameters"] == "1,250,000 1 %"
    assert "2.5 an hour" in table.title
    assert "price" not in cost_table(replace(methods(), price_per_hour=None)).columns


def test_pairs_tell_what_can_be_claimed() -> None:
    table = pair_table(methods())
    assert [[cell.line for cell in line] for line in table.rows] == [
        ["full against lora", "−0.0200 ± 0.0150", "0.012", "full"],
        ["full against qlora", "−0.2000 ± 0.2500", "0.200", "no claim"],
        ["lora against qlora", "−0.1800 ± 0.2500", "0.200", "no claim"],
    ]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (methods(), True),
        (many(3), True),
        (many(12), True),  # none of them is full
        (grid(), False),
        (replace(methods(), unfair=["other test sets"]), False),
    ],
)
def test_pairs_are_shown_where_they_tell_more_than_the_rows(found: Comparison, expected: bool) -> None:
    assert shows_pairs(found) is expected
    full = row("full", {"method.name": "full"}, 2.0, standing="reference")
    assert not shows_pairs(replace(many(12), rows=[*many(12).rows, full]))


def test_what_cannot_be_ranked_has_no_standing() -> None:
    unfair = replace(methods(), unfair=["other test sets"])
    assert quality_table(unfair).columns == ["", "test loss", "perplexity", "forgotten"]
    assert pair_table(unfair).rows == []
    assert wording.quality_note(unfair) is None and wording.quality_note(methods()) is not None


@pytest.mark.parametrize(
    ("seeds", "told"),
    [((1,), "1 seed, examples only, seed variance unknown"), ((1, 2), "2 seeds, weak"), ((1, 2, 3), "3 seeds")],
)
def test_few_seeds_are_marked(seeds: tuple[int, ...], told: str) -> None:
    found = comparison(axes=[], rows=[base(), row("lora", {}, 2.0, seeds=seeds)])
    assert quality_table(found).rows[1][0] == Cell("lora", told)
    assert ("weak" in told) == any("weak" in line for line in wording.interval_note(found))
    assert ("unknown" in told) == any("variance unknown" in line for line in wording.interval_note(found))


def test_a_claim_on_few_common_seeds_is_marked_where_it_stands() -> None:
    """Rows of three seeds each, of which two compared share two, or one."""
    two, one = estimate(0.02, 0.015, seeds=2, basis="few seeds"), estimate(0.2, 0.25, seeds=1, basis="examples")
    *others, lora, qlora = methods().rows
    rows = [*others, replace(lora, to_full=two), replace(qlora, to_full=two)]
    found = replace(methods(), rows=rows, pairs=[])
    assert cells(quality_table(found), "lora")["standing"] == "good enough weak: 2 seeds"
    assert cells(quality_table(found), "qlora")["standing"] == "undecided weak: 2 seeds"
    assert any("Two seeds are weak" in line for line in wording.interval_note(found))
    pairs = [
        replace(pair, difference=difference) for pair, difference in zip(methods().pairs, (two, one), strict=False)
    ]
    found = replace(methods(), pairs=[pairs[0], replace(pairs[1], adjusted_p=0.001)])
    assert [[cell.line for cell in line] for line in pair_table(found).rows] == [
        ["full against lora", "+0.0200 ± 0.0150, weak: 2 seeds", "0.012", "full"],
        ["full against qlora", "+0.2000 ± 0.2500, examples only: 1 seed", "-", "no claim"],
    ]
    notes = " ".join(wording.interval_note(found))
    assert "Two seeds are weak" in notes and "seed variance unknown" in notes
    assert "weak" not in " ".join(wording.interval_note(methods()))


def test_quality_is_explained_only_where_a_row_has_it() -> None:
    rows = [replace(entry, quality=None, standing=entry.standing and "no claim") for entry in methods().rows]
    rows[1] = replace(rows[1], standing="reference")
    assert wording.quality_note(replace(methods(), rows=rows)) is None
    assert "less than 2.5 % of that gain" in str(wording.quality_note(replace(methods(), margin=0.025)))


def test_quality_at_the_margin_is_not_rounded_onto_it() -> None:
    *others, lora, qlora = methods().rows
    lora = replace(lora, quality=Interval(value=0.9, low=0.852, high=0.948))
    table = quality_table(replace(methods(), rows=[*others, lora, qlora]))
    assert cells(table, "lora")["quality"] == "90.0 % 85.2 to 94.8 %"


def test_columns_that_no_row_fills_are_left_out_and_single_unknowns_are_hyphens() -> None:
    rows = [row("a", {}, 2.0), row("b", {}, 2.0, cost=RunCost(peak_memory_gib=1.5))]
    table = cost_table(comparison(axes=[], rows=rows))
    assert [[cell.line for cell in line] for line in table.rows] == [["a", "-"], ["b", "1.50 GiB"]]
    assert cost_table(comparison(axes=[], rows=rows[:1])).rows == []
    assert cost_table(comparison(axes=[], rows=[base()])).rows == []


def test_bits_per_byte_are_named() -> None:
    table = quality_table(replace(methods(), metric="bits_per_byte"))
    assert table.columns[1] == "test bits per byte"
    assert "perplexity" not in table.columns  # counts tokens, and there are several tokenizers


def terminal(monkeypatch: pytest.MonkeyPatch, found: Comparison, width: int) -> list[str]:
    """The lines that are shown in a terminal of this width."""
    screen = Console(width=width, record=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    screen.file = io.StringIO()
    monkeypatch.setattr(logs, "_console", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    show_comparison(found)
    return screen.export_text().splitlines()


def _wide(name: str) -> Row:
    return row(name, {}, 2.0, standing="undecided", quality=Interval(value=-0.5, low=-1.25, high=1.05), price=1234.5)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_nothing_is_wider_than_the_terminal_or_100_columns(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    costly = cost(123.4, 360_000, 8_000_000_000, 123_456)
    wide = comparison(
        axes=["x"],
        rows=[base(), replace(_wide("lora rank=16 learning_rate=0.0002"), cost=costly, would_decide="about 40 seeds")],
        notes=["word " * 60],
        price_per_hour=2.5,
        missing=[MissingRun(name="qlora", status="FAILED", error="out of memory " * 20)],
    )
    for found in (wide, methods(), many(12)):
        lines = terminal(monkeypatch, found, width)
        assert max(map(len, lines)) <= min(width, 100)
        assert len(lines) > 10


def test_the_verdict_follows_the_tables_and_what_is_missing_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [MissingRun(name="qlora seed=3", status="KILLED", error="out of time")]
    text = "\n".join(terminal(monkeypatch, replace(methods(), missing=missing), 100))
    order = [
        "quality on 400",
        "cost of training",
        "rows against each other",
        "Intervals are 95 %",
        "verdict: At default",
    ]
    places = [
        text.index(part) for part in [*order, "note: The learning", "not counted: qlora seed=3 KILLED: out of time"]
    ]
    assert places == sorted(places)


def test_the_log_holds_a_line_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(logs.logger, "info", lambda form, *values: said.append(form % values if values else form))
    terminal(monkeypatch, methods(), 100)
    assert any("\nlora 3 seeds | 2.0200 ± 0.0200 | 98.0 % 96.6 to 99.4 % | good enough |" in text for text in said)


def test_a_number_is_not_torn_from_its_per_cent_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = terminal(monkeypatch, methods(verdict="98 % " * 60, notes=[]), 100)
    assert "\N{NO-BREAK SPACE}" not in "".join(lines)
    assert not [line for line in lines if line.startswith("%")] and sum(line.count("98 %") for line in lines) == 60


def test_what_is_not_ranked_says_why_and_says_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unfair = replace(methods(), unfair=["The test sets differ: so.", "lora was trained on it."])
    text = "\n".join(terminal(monkeypatch, unfair, 100))
    assert "not ranked: The test sets differ: so." in text and "good enough" not in text.partition("verdict:")[0]
    told = "Nothing is ranked: the test sets differ: so. lora was trained on it."
    text = "\n".join(terminal(monkeypatch, replace(unfair, verdict=told), 100))
    assert "not ranked:" not in text and f"verdict: {told}" in text


def searched(*, sizes: int = 2) -> Comparison:
    """Two methods with some settings each, of which validation chose one."""
    rows = [base()]
    for method in ("full", "lora"):
        for place in range(sizes):
            rate = 0.0002 * (place + 1)
            chosen: dict[str, Any] = {"is_chosen": place == 0, "standing": "undecided" if place == 0 else None}
            values = {"method.name": method, "train.learning_rate": rate}
            quality = Interval(value=0.9, low=0.84, high=0.98) if place == 0 else None
            name = f"{method} learning_rate={rate:g}"
            needed = "about 2.1 times as many independent groups of test examples" if quality else None
            rows.append(row(name, values, 2.0 + place, quality=quality, would_decide=needed, **chosen))
    return comparison(axes=["method.name", "train.learning_rate"], rows=rows)


def test_the_setting_that_validation_chose_is_marked_where_there_was_a_choice() -> None:
    marked = {line[0].value: "chosen on validation" in line[0].detail for line in quality_table(searched()).rows}
    assert marked == {
        "base model": False,
        "full learning_rate=0.0002": True,
        "full learning_rate=0.0004": False,
        "lora learning_rate=0.0002": True,
        "lora learning_rate=0.0004": False,
    }
    assert not any("chosen" in line[0].detail for line in quality_table(searched(sizes=1)).rows)
    of_two_models = searched(sizes=1)
    rows = [replace(one, group={"model.name": name}) for name in ("a", "b") for one in of_two_models.rows]
    assert not any("chosen" in line[0].detail for line in quality_table(replace(of_two_models, rows=rows)).rows)


@pytest.mark.parametrize("width", [80, 120])
def test_perplexity_goes_first_where_the_terminal_is_narrow(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    # Rules and spaces are 3 a column and 1: 21 + 9 + 10 + 9 + 14 + 9 and 19 with perplexity is 91, without it 74.
    monkeypatch.setattr("llmtune.comparison.tables.print_table", lambda *table: shown.append(table))
    monkeypatch.setenv("COLUMNS", str(width))
    shown: list[Any] = []
    show_comparison(searched())
    _, columns, rows = shown[0]
    assert ("perplexity" in columns) == (width == 120) and "forgotten" in columns
    assert {len(line) for line in rows} == {len(columns)} and "independent" not in str(rows)
    # 10 + 9 + 14 + 11 + 14 + 9 and 19 is 86.
    for columns, is_kept in ((86, True), (85, False)):
        shown.clear()
        monkeypatch.setenv("COLUMNS", str(columns))
        show_comparison(methods())
        assert ("perplexity" in shown[0][1]) == is_kept


def test_no_pair_is_shown_where_every_pair_has_one_seed() -> None:
    one = [replace(pair, difference=estimate(-0.1, 0.01, seeds=1, basis="examples")) for pair in methods().pairs]
    assert pair_table(replace(methods(), pairs=one)).rows == [] and not shows_pairs(replace(methods(), pairs=one))
    mixed = replace(methods(), pairs=[*one[:2], methods().pairs[2]])
    assert len(pair_table(mixed).rows) == 3 and shows_pairs(mixed)


@pytest.mark.parametrize(("lower", "told"), [("lora", "better than full"), (None, "good enough")])
def test_better_than_full_stands_in_the_table(lower: str | None, told: str) -> None:
    *others, lora, qlora = methods().rows
    lora = replace(lora, quality=Interval(value=1.04, low=1.02, high=1.06))
    pairs = [replace(methods().pairs[0], lower=lower), *methods().pairs[1:]]
    found = replace(methods(), rows=[*others, lora, qlora], pairs=pairs)
    assert cells(quality_table(found), "lora")["standing"] == told


def test_seeds_are_not_spoken_of_where_nothing_is_compared() -> None:
    rows = [base(), row("lora", {}, 2.0, seeds=(1,)), row("full", {}, 2.0, seeds=(1, 2))]
    assert len(wording.interval_note(comparison(axes=[], rows=rows))) == 3
    assert len(wording.interval_note(comparison(axes=[], rows=rows, unfair=["Other data."]))) == 1
