"""The page of a comparison: the verdict first, each number in its place, no claim where none may be made."""

import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up_comparison import HOSTILE, base, comparison, cost, grid, many, methods, row, write_metrics

from llmtune.comparison.outcome import Comparison, MissingRun
from llmtune.comparison.page import write_comparison_page
from llmtune.comparison.plots import row_kinds
from llmtune.comparison.results import RunCost
from llmtune.comparison.statistics import Interval

pytestmark = pytest.mark.fast


class Page(HTMLParser):
    """The sections of a page by heading: their text, and the places of signs and error bars in them."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: set[str] = set()
        self.heading = "top"
        self.text: dict[str, str] = {"top": ""}
        self.signs: dict[str, list[tuple[str, str, str]]] = {}
        self.bars: dict[str, list[tuple[str, ...]]] = {}
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "wbr"):
            self.open.append(tag)
        found = {name: str(value) for name, value in attrs}
        if found.get("class", "").startswith("dot") and "%" in found["x"]:
            self.signs.setdefault(self.heading, []).append((found["class"][4:], found["x"], found["y"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: str(value) for name, value in attrs}
        if found.get("class", "").startswith("error"):
            place = tuple(found[name] for name in ("class", "x1", "x2", "y1", "y2"))
            self.bars.setdefault(self.heading, []).append(place)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "h2" in self.open or "h3" in self.open:
            self.heading = data
        if "style" not in self.open:
            self.text[self.heading] = self.text.get(self.heading, "") + " " + data


def page(tmp_path: Path, found: Comparison) -> Page:
    file = tmp_path / "comparison.html"
    write_comparison_page(file, found)
    read = Page(file.read_text(encoding="utf-8"))
    assert (read.open, read.wrong) == ([], [])
    return read


def kind(tmp_path: Path, found: Comparison) -> tuple[str, str]:
    """The box's kind and heading."""
    write_comparison_page(tmp_path / "x.html", found)
    markup = (tmp_path / "x.html").read_text(encoding="utf-8")
    match = re.search(r'<div class="verdict (\w+)">.*?</span>(.*?)</p>', markup)
    assert match
    return match[1], match[2]


def test_the_verdict_is_at_the_top_and_says_how_things_stand(tmp_path: Path) -> None:
    verdict = (
        "At default settings lora is good enough: it keeps 98 % of what full fine-tuning gains, in half its memory."
    )
    assert kind(tmp_path, methods()) == ("good", verdict)
    worse = [
        replace(entry, standing="worse" if entry.standing == "good enough" else entry.standing)
        for entry in methods().rows
    ]
    assert kind(tmp_path, replace(methods(), rows=worse)) == ("neutral", verdict)
    undecided = [replace(entry, standing=entry.standing and "undecided") for entry in methods().rows]
    assert kind(tmp_path, replace(methods(), rows=undecided)) == ("problem", verdict)
    without_full = [replace(entry, standing=None) for entry in methods().rows]
    assert kind(tmp_path, replace(methods(), rows=without_full)) == ("good", verdict)
    assert kind(tmp_path, replace(methods(), rows=without_full, pairs=methods().pairs[1:])) == ("problem", verdict)
    assert kind(tmp_path, replace(methods(), verdict="")) == ("problem", "There is no verdict")
    read = page(tmp_path, methods(missing=[MissingRun(name="lora seed=4", status="FAILED", error="out of memory")]))
    assert "qlora is undecided; about 4 more seeds may decide it." in read.text["top"]
    assert "lora seed=4: FAILED, out of memory" in read.text["Jobs that are not counted"]


def test_points_stand_at_their_quality_and_cost(tmp_path: Path) -> None:
    read = page(tmp_path, methods())
    # Memory 2, 4 and 8 of 0 to 8.48 GiB; quality 80, 98 and 100 of 55 - 3 to 105 + 3 %, 260 pixels high below 8.
    places = dict((sign, (x, y)) for sign, x, y in read.signs["Quality against peak memory"])
    assert places == {
        "s2": (f"{200 / 8.48:.2f}%", f"{8 + 260 * 28 / 56:g}"),
        "s1": (f"{400 / 8.48:.2f}%", f"{8 + 260 * 10 / 56:.2f}".rstrip("0")),
        "s0": (f"{800 / 8.48:.2f}%", f"{8 + 260 * 8 / 56:.2f}".rstrip("0")),
    }
    bars = {bar[0]: bar[3:] for bar in read.bars["Quality against peak memory"]}
    assert set(bars) == {"error s1", "error s2"}  # full's own quality is 1 by definition
    assert [float(y) for y in bars["error s2"]] == pytest.approx([8 + 260 * 3 / 56, 8 + 260 * 53 / 56], abs=0.01)
    # 1800, 2400 and 3720 s are 30, 40 and 62 of 0 to 65.72 minutes.
    times = {sign: x for sign, x, _ in read.signs["Quality against training time"]}
    assert times == {"s1": f"{3000 / 65.72:.2f}%", "s2": f"{4000 / 65.72:.2f}%", "s0": f"{6200 / 65.72:.2f}%"}


def test_loss_is_shown_with_its_interval_against_the_base_model(tmp_path: Path) -> None:
    read = page(tmp_path, methods())
    text = read.text["Test loss"]
    assert "base model 3.0000" in text and "2.2000 ± 0.0200" in text
    # The base lies 0.78 above the highest end, more than 3 times what the rows span (0.24): 1.98 to 2.22 are shown.
    span = 0.24 * 1.12
    places = [float(x.rstrip("%")) for _, x, _ in read.signs["Test loss"]]
    assert places == pytest.approx([100 * (loss - 1.98 + 0.0144) / span for loss in (2.0, 2.02, 2.2)], abs=0.01)
    first = read.bars["Test loss"][0]
    assert float(first[1].rstrip("%")) == pytest.approx(100 * 0.0144 / span, abs=0.01)


def test_the_difference_to_full_is_shown_against_what_is_good_enough(tmp_path: Path) -> None:
    read = page(tmp_path, methods())
    # Full gains 1.0 over the base, of which 5 % may be missing. Shown are -0.05 (0.2 - 0.25) to 0.45, span 0.5.
    assert "good enough: left of +0.0500" in read.text["Loss above full's"]
    places = {sign: float(x.rstrip("%")) for sign, x, _ in read.signs["Loss above full's"]}
    assert places == {
        "s1": pytest.approx(100 * (0.02 + 0.05 + 0.03) / 0.56, abs=0.01),
        "s2": pytest.approx(100 * (0.2 + 0.05 + 0.03) / 0.56, abs=0.01),
    }
    assert "lora +0.0200 ± 0.0150 good enough" in re.sub(r"\s+", " ", read.text["Loss above full's"])
    assert "Loss above full's" not in page(tmp_path, grid()).text


def test_a_sweep_of_two_keys_gets_a_map_and_others_none(tmp_path: Path) -> None:
    text = page(tmp_path, grid()).text["Test loss by rank and learning_rate"]
    body = text.partition("0.0001 0.001")[2]
    assert re.findall(r"no run|\d\.\d{4}(?= )|(?<= )(?:4|8|16)(?= )", f" {body} ".replace("± 0.0200", "")) == [
        *("4", "no run", "2.2000"),
        *("8", "2.3000", "2.1000"),
        *("16", "2.2500", "2.0500"),
        *("2.3000", "2.0500"),
    ]
    assert not any(" by " in heading for heading in page(tmp_path, methods()).text if heading.startswith("Test"))
    unfair = page(tmp_path, replace(grid(), unfair=["Other data."]))
    assert "Test loss by rank and learning_rate" not in unfair.text


def test_a_key_that_a_method_lacks_has_a_place_of_its_own(tmp_path: Path) -> None:
    rows = [
        row("full", {"method.name": "full"}, 2.0),
        *(row(f"lora {rank}", {"method.name": "lora", "method.rank": rank}, 2.1) for rank in (16, 8, 128)),
    ]
    found = comparison(rows=rows, axes=["method.name", "method.rank"])
    assert "8 16 128 without" in re.sub(r"\s+", " ", page(tmp_path, found).text["Test loss by method and rank"])


def test_curves_are_read_from_the_runs(tmp_path: Path) -> None:
    found = methods(tmp_path / "runs")
    for entry in found.rows[1:3]:
        for run in entry.runs:
            write_metrics(run.folder.path, [3.0, 2.5, 2.0], {3: 2.1})
    read = page(tmp_path, found)
    assert "qlora: 0 of 3 runs" in read.text["Loss curves"]
    assert [sign for sign, *_ in read.signs["Loss curves"]] == ["s1", "s0"]
    assert "Loss curves" not in page(tmp_path, methods()).text


def test_only_claims_are_bold_and_come_first(tmp_path: Path) -> None:
    write_comparison_page(tmp_path / "x.html", methods(pairs=list(reversed(methods().pairs))))
    markup = (
        (tmp_path / "x.html").read_text(encoding="utf-8").partition("Rows against each other")[2].partition("<h2")[0]
    )
    assert re.findall(r"<b [^>]*>(.*?)</b>", markup) == ["full"]
    assert markup.index("−0.0200") < markup.index("−0.1800")


def test_many_pairs_are_folded(tmp_path: Path) -> None:
    text = page(tmp_path, many(8)).text["Rows against each other"]
    assert "show 18 more" in text and text.count("no claim") == 28


def test_a_single_pair_is_not_folded(tmp_path: Path) -> None:
    found = many(5)
    assert len(found.pairs) == 10
    extra = [replace(found.pairs[0], first=f"x{number}") for number in range(2)]
    assert (
        "show" not in page(tmp_path, replace(found, pairs=[*found.pairs, *extra[:1]])).text["Rows against each other"]
    )
    text = page(tmp_path, replace(found, pairs=[*found.pairs, *extra])).text["Rows against each other"]
    assert "show 2 more" in text


def test_the_refusal_is_told_once(tmp_path: Path) -> None:
    reasons = ["The sets differ: so. Measure all alike.", "lora was trained on it."]
    told = "Nothing is ranked: the sets differ: so. Measure all alike. lora was trained on it. Not counted: 1 job."
    text = page(tmp_path, replace(methods(), unfair=reasons, verdict=told)).text["top"]
    assert [text.lower().count(part) for part in ("sets differ: so", "measure all alike", "trained on it")] == [1, 1, 1]
    assert "Nothing is ranked" not in text and "Not counted: 1 job." in text


def drawn(tmp_path: Path, found: Comparison) -> tuple[list[str], str]:
    """The names in the plot of quality or loss against memory, and the lines beneath it."""
    page(tmp_path, found)
    markup = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    plot = markup.partition(" against peak memory</h3>")[2].partition("<h3>")[0]
    return re.findall(r'<text[^>]*class="name [^>]*>([^<]*)', plot), "".join(re.findall(r'"more">(.*?)</p>', plot))


def test_names_in_a_plot_are_shortened_all_in_one_way(tmp_path: Path) -> None:
    names = ["full learning_rate=2", "lora learning_rate=0.001000"]
    full, lora = (row(name, {}, 2.0 + place, cost=cost(1 + 4 * place, 9)) for place, name in enumerate(names))
    short, _ = drawn(tmp_path, comparison(axes=[], rows=[full, lora]))
    assert sorted(short) == ["full 2", "lora 0.001000"]
    assert "Names here leave out learning_rate=." in (tmp_path / "comparison.html").read_text(encoding="utf-8")
    whole, _ = drawn(tmp_path, comparison(axes=[], rows=[full, replace(lora, name="lora learning_rate=0.1")]))
    assert sorted(whole) == [names[0], "lora learning_rate=0.1"]
    assert "leave out" not in (tmp_path / "comparison.html").read_text(encoding="utf-8")
    alike = [replace(full, name="lora the_first_rate_of_all=1"), replace(lora, name="lora b=1")]
    kept, _ = drawn(tmp_path, comparison(axes=[], rows=alike))
    assert len(set(kept)) == 2


def test_what_is_not_drawn_says_why(tmp_path: Path) -> None:
    known = cost(2.0, 60)
    others = [
        row("a", {}, 2.1, cost=known),
        row("b", {}, 2.2, cost=known),
        row("c", {}, 2.3, cost=known, standing="no claim"),
        row("d", {}, 2.4, standing="undecided", quality=Interval(value=0.9, low=0.8, high=1.0)),
    ]
    _, told = drawn(tmp_path, replace(methods(), rows=[*methods().rows, *others]))
    assert told == (
        "2 not drawn: no quality, as not chosen on validation; 1 not drawn: quality unknown; "
        "1 not drawn: peak memory unknown"
    )


def test_names_without_room_are_counted(tmp_path: Path) -> None:
    rows = [row(f"lora rank={number}", {"x": number}, 2.0, cost=cost(4, 60)) for number in range(40)]
    names, told = drawn(tmp_path, comparison(axes=["x"], rows=rows))
    assert 5 < len(names) < 40 and told == f"no room for {40 - len(names)} names: point at a sign to read it"


def test_where_nothing_is_ranked_the_page_says_so_and_claims_nothing(tmp_path: Path) -> None:
    unfair = replace(methods(), unfair=["lora was measured on another test set."])
    assert kind(tmp_path, unfair) == ("problem", "These runs can&#39;t fairly be ranked")
    read = page(tmp_path, unfair)
    assert "lora was measured on another test set." in read.text["top"]
    assert not {"Rows against each other", "Quality", "Loss above full's", "Quality against peak memory"} & set(
        read.text
    )
    rest = " ".join(text for heading, text in read.text.items() if heading != "top")
    assert "good enough" not in rest.lower()
    assert "Test loss against peak memory" in read.text


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_marked(tmp_path: Path, seeds: int) -> None:
    found = comparison(axes=[], rows=[base(), row("lora", {}, 2.0, seeds=range(seeds), cost=cost(1, 1))])
    read = page(tmp_path, found)
    mark = {1: "1 seed, examples only, seed variance unknown", 2: "2 seeds, weak"}[seeds]
    assert mark in read.text["Losses"]
    assert {1: "examples only", 2: "Two seeds are weak"}[seeds] in read.text["How the intervals are made"]


def test_odd_values_and_hostile_names_break_nothing(tmp_path: Path) -> None:
    odd = [
        base(),
        row(HOSTILE, {"x": HOSTILE, "y": math.nan}, math.nan, cost=RunCost(peak_memory_gib=math.inf, device=HOSTILE)),
        row("b" * 300, {"x": 1, "y": None}, 2.0, half=math.inf, cost=cost(0.0, 0.0), price=math.nan),
        row("c", {"x": [1, 2], "y": True}, math.inf, half=math.nan, cost=cost(1.0, math.nan)),
        row("d", {}, 2.0, quality=Interval(value=-3.0, low=-math.inf, high=math.inf), standing="no claim"),
    ]
    missing = [MissingRun(name=HOSTILE, status=HOSTILE, error=HOSTILE)]
    shown: dict[str, object] = {"title": HOSTILE, "verdict": HOSTILE, "notes": [HOSTILE], "missing": missing}
    for rows in (odd, odd[:1], odd[1:2], []):
        read = page(tmp_path, comparison(axes=["x", "y"], rows=rows, price_per_hour=1.0, **shown))
        assert not {"script", "td onclick", "img", "a"} & read.tags
    lines = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "<script" not in lines and HOSTILE.split("<")[0] in lines


def test_rows_that_stand_for_their_method_get_colours_first() -> None:
    found = many(8)
    rows = [replace(entry, is_chosen=number == 8) for number, entry in enumerate(found.rows)]
    looks = [look.css for look in row_kinds(replace(found, rows=rows)).values()]
    assert looks == ["s0", "s1", "s2", "s3", "s4", "s5", "rest", "rest"]
    assert next(iter(row_kinds(replace(found, rows=rows)))) == rows[8].name


def test_every_run_is_named(tmp_path: Path) -> None:
    text = page(tmp_path, methods()).text["Runs"]
    assert "lora-2.02-3: lora, seed 3, measured" in text and text.count("seed") == 9
