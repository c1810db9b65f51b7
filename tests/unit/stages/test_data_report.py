"""The page and the tables on prepared data: every figure is there, and the text of examples breaks nothing."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up_report import NOTHING, report, source, split, splits

from llmtune.stages.data_advice import PackingFill, advise
from llmtune.stages.data_page import DataPage
from llmtune.stages.data_report import show_report
from llmtune.stages.shown_examples import ShownExample, drawn, in_terminal
from llmtune.stages.token_pieces import Piece

pytestmark = pytest.mark.fast

READ, LEARNT = ("<|user|>", "Say", " hi", "\n"), ("Hi", "!", "<|end|>")
EXAMPLE = ShownExample(
    "poems.jsonl:17",
    "train",
    tuple(Piece(text, text in LEARNT) for text in (*READ, *LEARNT)),
    special=frozenset({"<|user|>", "<|end|>"}),
)
HOSTILE = ("</script>", "<b>", "&amp;", "\x00\x1b[31m", "\u202eevil", "مرحبا", "\ud83d", "")
VOID = {"meta", "wbr"}


class Read(HTMLParser):
    """The text of each section by heading; what is not closed, and what could fetch something."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.whole = True
        self.text = ""
        self._part = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._part = ""

    def handle_endtag(self, tag: str) -> None:
        self.whole &= bool(self.open) and self.open.pop() == tag
        if tag == "h2":
            self.sections[self._part] = ""

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "h2" in self.open:
            self._part += data
        elif self._part in self.sections:
            self.sections[self._part] += f" {data}"


def page(folder: Path, shown: Any = (EXAMPLE,), fill: PackingFill | None = None, **changed: Any) -> Read:
    DataPage(report(**changed), shown, fill, 256).write(folder / "page.html")
    markup = (folder / "page.html").read_text(encoding="utf-8")
    read = Read(markup)
    assert read.whole and read.open == []
    assert not {"script", "img", "link", "iframe", "object", "form"} & read.tags
    assert not {"src", "href", "srcdoc", "style", "xlink:href"} & read.attributes
    return read


def test_clean_data_is_one_verdict_the_figures_and_a_line_for_each_thing_not_found(tmp_path: Path) -> None:
    read = page(tmp_path)
    assert "No problem found" in read.text
    assert list(read.sections) == [
        "Rows and tokens",
        "Splits",
        "Examples as the model sees them",
        "Lengths",
        "Sources",
    ]
    for said in (
        "Left outNo row: every one is in a split.",
        "Bad recordsNone: every record can be read.",
        "DuplicatesNone found.",
        "Training data in the test setNone found.",
        "OutliersNone found.",
        "Personal data and secretsNone found.",
        "training examples200150 tokens each",
        "tokens trained on12,00040 % of 30,000",
        "test examples25never trained on",
        "rows left out0of 250",
    ):
        assert said in read.text


def test_what_was_not_looked_for_is_not_said_to_be_missing(tmp_path: Path) -> None:
    read = page(tmp_path, outliers={}, personal_data={"action": "ignore", "kinds": {}})
    assert "OutliersNot looked for (data.outliers=ignore)." in read.text
    assert "Personal data and secretsNot looked for (data.personal_data=ignore)." in read.text


def test_without_text_the_page_says_why_there_is_none(tmp_path: Path) -> None:
    read = page(tmp_path, shown=())
    assert "Examples as the model sees them" not in read.sections
    assert "tracking.log_text=false" in read.text


def test_problems_stand_above_all_else(tmp_path: Path) -> None:
    read = page(tmp_path, splits=splits(num_truncated=40, num_cut_tokens=9), overlap=NOTHING | {"exact": 3})
    assert read.text.index("2 things to look at before training") < read.text.index("training examples")
    markup = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<code>data.max_seq_len=384</code>" in markup
    assert "<b>40 of 250 rows are cut at 256 tokens, 9 tokens lost</b>: " in markup


def test_everything_that_was_found_is_listed(tmp_path: Path) -> None:
    pairs = [{"first": "poems.jsonl:1", "other": "poems.jsonl:5", "likeness": 0.84}]
    kept = {"train": 200, "validation": 25, "test": 25}
    read = page(
        tmp_path,
        fill=PackingFill([1000, 1024, 500], 1024, 3),
        rows={"in": 262, "kept": kept, "dropped": {"empty <text>": 2, "duplicate": 10}},
        duplicates=NOTHING | {"exact": 12, "near": 1, "num_groups": 4, "listed": pairs},
        overlap=NOTHING | {"exact": 1, "listed": ["poems.jsonl:9 and test.jsonl:2"]},
        outliers={"length": {"count": 1204, "listed": ["poems.jsonl:3: 12,345 words, the median is 80"]}},
        personal_data={"action": "mask", "kinds": {"email": {"count": 3, "rows": 2, "listed": ["poems.jsonl:7"]}}},
        bad_records={"count": 2, "by_reason": {"not valid JSON": 2}, "listed": ["poems.jsonl:8: not valid JSON"]},
    )
    sections = read.sections
    assert re.sub(r"\s+", " ", sections["Rows left out, by reason"]) == (
        " 262 rows = 250 kept + 12. duplicate 10 empty <text> 2"
    )
    assert "13 rows repeat others, in 4 groups: 12 word for word, 1 nearly." in sections["Duplicates"]
    assert "poems.jsonl:5 repeats poems.jsonl:1 (84 % alike)" in sections["Duplicates"]
    assert "and 12 more" in sections["Duplicates"]
    assert "poems.jsonl:9 and test.jsonl:2" in sections["Training data in the test set"]
    assert "length: 1,204 poems.jsonl:3: 12,345 words" in sections["Outliers"]
    assert "and 1,203 more" in sections["Outliers"]
    personal = sections["Personal data and secrets"]
    assert "Placeholders stand in its place (data.personal_data=mask)." in personal
    assert "email: 3 poems.jsonl:7 and 1 more" in personal
    assert "poems.jsonl:8: not valid JSON" in sections["Bad records"]
    assert "mean 82 %" in sections["Fill of packed micro-batches"]
    assert "3 micro-batches of 3 steps, each with room for 1,024 tokens." in sections["Fill of packed micro-batches"]


def test_sources_say_shape_licence_and_what_is_not_used(tmp_path: Path) -> None:
    other = source(name="org/set", role="eval", licence=None, revision="abc", files=[], unread_columns=["id"])
    said = page(tmp_path, sources=[*source(), *other]).sections["Sources"]
    assert "250 as prompt and completion: every row has  prompt  and  completion ." in said
    assert "licence MIT · 1 file (jsonl), 1.0 MiB · sha256 cdcdcdcdcdcd" in said
    assert "licence unknown · revision abc · sha256 cdcdcdcdcdcd · not used: id" in said
    assert "org/set 250 200 25 25 0 test only" in said


def test_splits_show_only_what_is_there(tmp_path: Path) -> None:
    plain = page(tmp_path).sections["Splits"]
    assert "split rows tokens trained on mean longest training 200 30,000 12,000 (40 %) 150 380" in plain
    cut = page(tmp_path, splits=splits(num_examples=230, num_windows=60, longest_tokens=256)).sections["Splits"]
    assert "split rows examples tokens trained on mean longest longest uncut windows training 200 230" in cut


def test_lengths_have_the_cut_off_and_the_percentiles_of_each_split(tmp_path: Path) -> None:
    page(tmp_path)
    markup = (tmp_path / "page.html").read_text(encoding="utf-8")
    marks = re.findall(r'class="mark[^"]*">([^<]+)</text>', markup)
    assert marks == ["median 150", "max_seq_len 256", "p95 280", "p99 350"] * 3
    # The axis ends at the longest bar, 400; max_seq_len is 256.
    assert markup.count('<line x1="64.00%" x2="64.00%"') == 3
    # Bars from 300 on lie beyond it in each split.
    assert markup.count('class="bar cut"') == 3


def test_where_nothing_is_trained_the_page_speaks_of_the_test_set(tmp_path: Path) -> None:
    parts = {"train": split(0), "validation": split(0), "test": split(25)}
    kept = {"train": 0, "validation": 0, "test": 25}
    read = page(tmp_path, shown=(), splits=parts, rows={"in": 25, "kept": kept, "dropped": {}})
    assert "What the model is measured on" in read.text
    assert "training examples" not in read.text and "tokens trained on" not in read.text


def test_each_token_stands_apart_and_what_is_trained_is_marked() -> None:
    shown = drawn(EXAMPLE)
    assert "training: 7 tokens, 3 trained on" in shown
    assert re.findall(r"<mark>(.*?)</mark>", shown) == [
        '<i>Hi</i><wbr><i>!</i><wbr><i class="special">&lt;|end|&gt;</i><wbr>'
    ]
    assert '<i class="special">&lt;|user|&gt;</i><wbr><i>Say</i><wbr>' in shown
    assert '<i><span class="blank">·</span>hi</i>' in shown
    assert '<i><span class="blank">↵\n</span></i>' in shown


def test_the_tokens_of_one_character_are_a_box_and_counted_each() -> None:
    shown = drawn(ShownExample("a:1", "test", (Piece("x", False), Piece("🙂", True, 4), Piece("y", True))))
    assert "test: 6 tokens, 5 trained on" in shown
    assert re.findall(r"<i>(.)</i>", shown) == ["x", "🙂", "y"]


def test_of_a_long_example_start_and_end_are_shown() -> None:
    tokens = tuple(Piece(f"t{number}", number >= 300) for number in range(1000))
    shown = drawn(ShownExample("a:1", "train", tokens))
    numbers = [int(found) for found in re.findall(r"<i>t(\d+)</i>", shown)]
    assert numbers == [*range(260), *range(920, 1000)]
    assert "… 660 tokens not shown, 620 trained on …" in shown


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    tokens = tuple(Piece(text, number % 2 == 0) for number, text in enumerate(HOSTILE))
    bad = {"count": 1, "by_reason": {"<script>": 1}, "listed": ["<script>.jsonl:1: \x1b[31m"]}
    read = page(
        tmp_path,
        shown=[ShownExample("</style>.jsonl:1", "train", tokens, frozenset(HOSTILE))],
        bad_records=bad,
        sources=source(name="</style><script>", unread_columns=["<img src=x>"]),
    )
    text = read.sections["Examples as the model sees them"]
    for said in ("</script>", "&amp;", "␀␛[31m", "⟨U+202E⟩evil", "مرحبا", "\ufffd", "∅", "</style>.jsonl:1"):
        assert said in text
    markup = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not set(markup) & {"\x00", "\x1b", "\u202e"}
    assert markup.count("</style>") == markup.count("<style>") == 1


def test_the_terminal_shows_splits_reasons_and_last_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    kept = {"train": 200, "validation": 25, "test": 25}
    changed = report(
        rows={"in": 262, "kept": kept, "dropped": {"empty text": 2, "duplicate": 10}},
        splits=splits(num_truncated=40, num_cut_tokens=9),
        outliers={"length": {"count": 3, "listed": []}},
    )
    show_report(changed, [EXAMPLE], PackingFill([1000], 1024, 1), 256)
    out = capsys.readouterr().out
    assert "data: poems.jsonl, 250 rows: 250 as prompt and completion: every row has `prompt` and `completion`" in out
    assert re.search(r"training +│ +200 │ +200 │ +30,000 │ +40 % │ +150 │ +380 │ +40 │", out)
    assert re.search(r"left out: 12 of 262 rows\n(.*\n){3}│ duplicate +│ +10 │\n│ empty text +│ +2 │", out)
    assert "outliers: 3 by length" in out and "packed micro-batches: 98 % full" in out
    assert "training example poems.jsonl:17" in out and "⟦Hi!<|end|>⟧" in out
    assert out.index("left out: 12") < out.index("⟦Hi!") < out.index("warning: 40 of 250 rows are cut at 256 tokens")


def test_loss_outliers_that_are_left_out_call_for_nothing() -> None:
    found = {"loss": {"count": 3, "listed": []}}
    rows = report()["rows"]
    assert any("data.loss_outliers=drop" in line for line in advise(report(outliers=found), None, 512))
    dropped = rows | {"dropped": {"the base model's loss stands out": 3}}
    assert advise(report(outliers=found, rows=dropped), None, 512) == []


def test_the_terminal_says_that_clean_data_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(report(), [], None, 512)
    out = capsys.readouterr().out
    assert out.rstrip().splitlines()[-1] == "no problem found in the data"
    assert "warning" not in out and "left out" not in out


def test_an_example_in_the_terminal_is_short_and_has_no_control_characters() -> None:
    tokens = (Piece("\x1b[2J", False), Piece("a" * 900, True), Piece("b", False))
    text = in_terminal(ShownExample("a:1", "test", tokens)).plain
    assert "\x1b" not in text and "␛[2J⟦aaa" in text
    assert text.endswith("a⟧ …") and text.count("a") < 710
    assert in_terminal(ShownExample("a:1", "test", (Piece("x", True),))).plain.endswith("⟦x⟧")
