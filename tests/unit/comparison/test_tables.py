"""What the tables say of each row, against figures that were put in, and how wide they are in a terminal."""

import io
import math
import sys
from dataclasses import replace
from pathlib import Path

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
        "quality": "98 % 97 to 99 %",
        "standing": "good enough",
        "perplexity": "7.538 7.389 to 7.691",
        "forgotten": "+0.0590 ± 0.0040",
    }
    assert cells(table, "full")["quality"] == "100 %"
    assert cells(table, "qlora")["standing"] == "undecided about 4 more seeds"


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


def test_columns_that_no_row_fills_are_left_out_and_single_unknowns_are_hyphens() -> None:
    rows = [row("a", {}, 2.0), row("b", {}, 2.0, cost=RunCost(peak_memory_gib=1.5))]
    table = cost_table(comparison(axes=[], rows=rows))
    assert [[cell.line for cell in line] for line in table.rows] == [["a", "-"], ["b", "1.50 GiB"]]
    assert cost_table(comparison(axes=[], rows=rows[:1])).rows == []
    assert cost_table(comparison(axes=[], rows=[base()])).rows == []


def test_bits_per_byte_are_named() -> None:
    table = quality_table(replace(methods(), metric="bits_per_byte"))
    assert table.columns[1] == "test bits per byte"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (wording.loss(-0.02, signed=True), "−0.0200"),
        (wording.loss(math.inf), "∞"),
        (wording.half_width(Interval(value=1.0, low=math.nan, high=math.nan)), "interval unknown"),
        (wording.half_width(Interval(value=math.nan, low=math.nan, high=math.nan)), ""),
        (wording.half_width(Interval(value=1.0, low=-math.inf, high=math.inf)), "± ∞"),
        (wording.half_width(Interval(value=1.0, low=0.99999, high=1.00001)), "± < 0.0001"),
        (wording.half_width(Interval(value=1.0, low=1.0, high=1.0)), "± 0.0000"),
        (wording.limits(Interval(value=0.9, low=-math.inf, high=1.04), wording.share), "−∞ to 104 %"),
        (wording.limits(Interval(value=0.9, low=-0.25, high=math.inf), wording.share), "−25 % to ∞"),
        (wording.measured(estimate(math.nan, 0.1)), "NaN"),
        (wording.perplexity(12345.6), "1.23e+04"),
        (wording.perplexity(123.45), "123.5"),
        (wording.share(0.004), "0.4 %"),
        (wording.p_value(0.0004), "< 0.001"),
        (wording.p_value(math.nan), "-"),
        (wording.seconds(9.96), "10.0 s"),
        (wording.seconds(59.7), "1 min 00 s"),
        (wording.seconds(3599.6), "1 h 00 min"),
        (wording.seconds(360_000), "100 h 00 min"),
        (wording.price(0.0123), "0.0123"),
        (wording.gib(None), "-"),
    ],
)
def test_figures_as_text(shown: str, text: str) -> None:
    assert shown == text


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
    assert any("\nlora 3 seeds | 2.0200 ± 0.0200 | 98 % 97 to 99 % | good enough |" in text for text in said)


def test_a_number_is_not_torn_from_its_per_cent_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = terminal(monkeypatch, methods(verdict="98 % " * 60, notes=[]), 100)
    assert "\N{NO-BREAK SPACE}" not in "".join(lines)
    assert not [line for line in lines if line.startswith("%")] and sum(line.count("98 %") for line in lines) == 61


def test_what_is_not_ranked_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(terminal(monkeypatch, replace(methods(), unfair=["other test sets."]), 100))
    assert "not ranked: other test sets." in text and "good enough" not in text.partition("verdict:")[0]
