"""The page on prepared data: what the model will learn from, at one look and then in detail."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtune.pages.charts import Bins, Mark, Share, axis_over, bars, histogram, patterns, stacked
from llmtune.pages.elements import Content, Html, element, joined
from llmtune.pages.numbers import counted, number, percent
from llmtune.pages.page import Figure, columns, figures, listing, quiet, section, table, verdict, write_page
from llmtune.stages.data_advice import PackingFill, advise, likenesses, num_found
from llmtune.stages.shown_examples import SPLIT_NAMES, ShownExample, drawn, legend

_KINDS = {"train": "a", "validation": "b", "test": "c"}
_FILL_BARS = 20
_MOST_SOURCES = 20
_TYPED = re.compile(r"((?:data|train|tracking)\.[a-z_*]+(?:=[\w./]+)?)")
_TEXT_OFF = "Examples are not shown: tracking.log_text=false keeps their text out of every file."


class DataPage:
    """Composes the page.

    Args:
        report: the account of prepared data.
        shown: examples for a person to look at; none where text may not be written.
        fill: of the micro-batches; None where they aren't planned or aren't packed.
        max_seq_len: tokens of an example at most.
    """

    def __init__(
        self, report: Mapping[str, Any], shown: Sequence[ShownExample], fill: PackingFill | None, max_seq_len: int
    ) -> None:
        self._report = report
        self._max_seq_len = max_seq_len
        self._shown = shown
        self._fill = fill
        self._quiet: list[tuple[str, str]] = []

    def write(self, path: Path) -> None:
        """Write the page to a file."""
        trains = bool(self._report["splits"]["train"]["num_examples"])
        title = "What the model will learn from" if trains else "What the model is measured on"
        names = [source["name"] for source in self._report["sources"]]
        more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        lead = f"{', '.join(names[:3])}{more}: {counted(self._report['rows']['in'], 'row')}"
        parts = [
            self._verdict(),
            self._figures(),
            self._rows(),
            self._splits(),
            self._examples(),
            self._lengths(),
            self._micro_batches(),
            self._sources(),
            self._left_out(),
            self._bad_records(),
            self._duplicates(),
            self._overlap(),
            self._outliers(),
            self._personal_data(),
        ]
        write_page(path, title, lead, patterns(), *parts, quiet(self._quiet))

    def _verdict(self) -> Html:
        lines = advise(self._report, self._fill, self._max_seq_len)
        if lines:
            return verdict(
                "problem",
                f"{counted(len(lines), 'thing')} to look at before training",
                [_advice(line) for line in lines],
            )
        return verdict("good", "No problem found")

    def _figures(self) -> Html:
        splits, rows = self._report["splits"], self._report["rows"]
        train, test = splits["train"], splits["test"]
        left_out = sum(rows["dropped"].values())
        shown = []
        if train["num_examples"]:
            share = f"{percent(train['supervised_share'])} of {number(train['num_tokens'])}"
            shown += [
                Figure("training examples", number(train["num_examples"]), f"{train['mean_tokens']:,.0f} tokens each"),
                Figure("tokens trained on", number(train["num_supervised_tokens"]), share),
                Figure("validation examples", number(splits["validation"]["num_examples"]), "for checkpoints"),
            ]
        shown.append(Figure("test examples", number(test["num_examples"]), "never trained on"))
        shown.append(Figure("rows left out", number(left_out), f"of {number(rows['in'])}"))
        return figures(*shown)

    def _rows(self) -> Html:
        rows, train = self._report["rows"], self._report["splits"]["train"]
        parts = [Share(SPLIT_NAMES[name], count, _KINDS[name]) for name, count in rows["kept"].items()]
        parts.append(Share("left out", sum(rows["dropped"].values()), "off"))
        kept = element("h3", f"Where the {number(rows['in'])} rows went"), stacked("rows by split", parts, "rows")
        if not train["num_tokens"]:
            return section("Rows and tokens", kept)
        read = train["num_tokens"] - train["num_supervised_tokens"]
        tokens = [Share("trained on", train["num_supervised_tokens"], "d"), Share("read only", read, "off")]
        learnt = (
            element("h3", f"What the {number(train['num_tokens'])} training tokens are for"),
            stacked("training tokens", tokens, "tokens"),
        )
        return section("Rows and tokens", columns(kept, learnt))

    def _splits(self) -> Html:
        splits = {name: split for name, split in self._report["splits"].items() if split["num_rows"]}
        heads = {"num_rows": "rows"}
        if any(split["num_examples"] != split["num_rows"] for split in splits.values()):
            heads["num_examples"] = "examples"
        heads |= {
            "num_tokens": "tokens",
            "num_supervised_tokens": "trained on",
            "mean_tokens": "mean",
            "longest_tokens": "longest",
        }
        optional = {
            "num_truncated": "cut",
            "longest_uncut_tokens": "longest uncut",
            "num_cut_tokens": "tokens lost",
            "num_windows": "windows",
            "num_by_turn": "by turn",
            "num_thinking_dropped": "thinking dropped",
            "num_repeated": "repeated",
        }
        uncut = any(split["longest_uncut_tokens"] != split["longest_tokens"] for split in splits.values())
        said = {key for key in optional if any(split[key] for split in splits.values())}
        said -= set() if uncut else {"longest_uncut_tokens"}
        heads |= {key: head for key, head in optional.items() if key in said}
        rows = [[SPLIT_NAMES[name], *(_cell(split, key) for key in heads)] for name, split in splits.items()]
        note = "Lengths in tokens. Adding rows moves no test example into training."
        return section("Splits", table("splits", ["split", *heads.values()], rows), note=note)

    def _examples(self) -> Html:
        if not self._shown:
            self._quiet.append(("Examples", _TEXT_OFF))
            return Html()
        note = (
            "Each box is a token, or those that make up one character. Blue and underlined ones are learnt; the others "
            "are only read."
        )
        return section("Examples as the model sees them", legend(), *map(drawn, self._shown), note=note)

    def _lengths(self) -> Html:
        splits = {name: split for name, split in self._report["splits"].items() if split["num_rows"]}
        limit = Mark(self._max_seq_len, f"max_seq_len {number(self._max_seq_len)}", is_limit=True)
        bins = {
            name: Bins(split["lengths"]["edges"], split["lengths"]["counts"], "rows") for name, split in splits.items()
        }
        axis = axis_over([(series.edges, series.counts) for series in bins.values()], [limit], "tokens")
        charts: list[Content] = []
        for name, split in splits.items():
            marks = [*_percentiles(split["lengths"]), limit]
            charts.append(element("h3", f"{SPLIT_NAMES[name]}: {counted(split['num_rows'], 'row')}"))
            height = 120 if name == "train" else 60
            charts.append(histogram(f"lengths, {SPLIT_NAMES[name]}", bins[name], axis, marks, height))
        note = "Tokens of each row before anything is cut. 95 % are no longer than p95, 99 % than p99."
        if any(split["lengths"]["percentiles"]["100"] > split["lengths"]["edges"][-1] for split in splits.values()):
            note += " The last bar takes in all that are longer."
        return section("Lengths", *charts, note=note)

    def _micro_batches(self) -> Html:
        if self._fill is None or not self._fill.num_tokens:
            return Html()
        fill = self._fill
        counts = [0] * _FILL_BARS
        for tokens in fill.num_tokens:
            counts[min(_FILL_BARS - 1, _FILL_BARS * tokens // fill.micro_batch_tokens)] += 1
        edges = [100 * number / _FILL_BARS for number in range(_FILL_BARS + 1)]
        mean = Mark(100 * fill.mean, f"mean {percent(fill.mean)}")
        axis = axis_over([([0, 100], [1])], [], "% full")
        note = (
            f"{counted(len(fill.num_tokens), 'micro-batch', 'micro-batches')} of {counted(fill.num_steps, 'step')}, "
            f"each with room for {number(fill.micro_batch_tokens)} tokens."
        )
        chart = histogram("micro-batches by how full they are", Bins(edges, counts, "micro-batches"), axis, [mean], 90)
        return section("Fill of packed micro-batches", chart, note=note)

    def _sources(self) -> Html:
        sources = self._report["sources"]
        names = ("source", "rows", *SPLIT_NAMES.values(), "left out", "weight")
        rows = [
            [
                source["name"],
                number(source["rows"]),
                *(number(source["kept"].get(name, 0)) for name in SPLIT_NAMES),
                number(sum(source["dropped"].values())),
                "test only" if source["role"] == "eval" else f"{source['weight']:g}",
            ]
            for source in sources
        ]
        told = [joined(element("h3", source["name"]), _origin(source)) for source in sources[:_MOST_SOURCES]]
        rest = len(sources) - _MOST_SOURCES
        more = element("p", f"and {rest:,} more", class_="more") if rest > 0 else None
        return section("Sources", table("sources", names, rows), *told, more)

    def _left_out(self) -> Html:
        dropped = self._report["rows"]["dropped"]
        if not dropped:
            self._quiet.append(("Left out", "No row: every one is in a split."))
            return Html()
        ordered = sorted(dropped.items(), key=lambda entry: -entry[1])
        shares = [Share(reason, count) for reason, count in ordered]
        rows = self._report["rows"]
        note = (
            f"{number(rows['in'])} rows = {number(sum(rows['kept'].values()))} kept + {number(sum(dropped.values()))}."
        )
        return section("Rows left out, by reason", bars(shares), note=note)

    def _bad_records(self) -> Html:
        bad = self._report["bad_records"]
        if not bad["count"]:
            self._quiet.append(("Bad records", "None: every record can be read."))
            return Html()
        reasons = [Share(reason, count, "cut") for reason, count in bad["by_reason"].items()]
        chart = bars(reasons)
        return section("Bad records", chart, listing(bad["listed"], bad["count"]), note="They can't be read.")

    def _duplicates(self) -> Html:
        found = self._report["duplicates"]
        count = num_found(found)
        if not count:
            self._quiet.append(("Duplicates", "None found."))
            return Html()
        groups = counted(found["num_groups"], "group")
        note = (
            f"{counted(count, 'row')} repeat others, in {groups}: {likenesses(found)}. No group straddles two splits."
        )
        lines = [f"{pair['other']} repeats {pair['first']}{_alike(pair['likeness'])}" for pair in found["listed"]]
        return section("Duplicates", listing(lines, count), note=note)

    def _overlap(self) -> Html:
        found = self._report["overlap"]
        if not num_found(found):
            self._quiet.append(("Training data in the test set", "None found."))
            return Html()
        note = f"Rows of the training data that also stand in the test set and are left out: {likenesses(found)}."
        return section("Training data in the test set", listing(found["listed"], num_found(found)), note=note)

    def _outliers(self) -> Html:
        kinds = {kind: found for kind, found in self._report["outliers"].items() if found["count"]}
        if not kinds:
            looked = "None found." if self._report["outliers"] else "Not looked for (data.outliers=ignore)."
            self._quiet.append(("Outliers", looked))
            return Html()
        return section("Outliers", *_by_kind((kind, found["count"], found) for kind, found in kinds.items()))

    def _personal_data(self) -> Html:
        found = self._report["personal_data"]
        if not found["kinds"]:
            looked = "Not looked for (data.personal_data=ignore)." if found["action"] == "ignore" else "None found."
            self._quiet.append(("Personal data and secrets", looked))
            return Html()
        said = {"warn": "It stays in", "mask": "Placeholders stand in its place", "drop": "These rows are left out"}
        kinds = _by_kind((kind, entry["count"], entry) for kind, entry in found["kinds"].items())
        note = f"{said.get(found['action'], 'It stays in')} (data.personal_data={found['action']})."
        return section("Personal data and secrets", *kinds, note=note)


def _percentiles(lengths: Mapping[str, Any]) -> Iterator[Mark]:
    for label, share in (("median", "50"), ("p95", "95"), ("p99", "99")):
        value = lengths["percentiles"][share]
        yield Mark(value, f"{label} {number(value)}")


def _by_kind(entries: Any) -> Iterator[Html]:
    for kind, count, found in entries:
        yield element("h3", f"{kind.replace('_', ' ')}: {number(count)}")
        yield listing(found["listed"], found.get("rows", count))


def _alike(likeness: float) -> str:
    return "" if likeness >= 1 else f" ({percent(likeness)} alike)"


def _cell(split: Mapping[str, Any], key: str) -> str:
    share = f" ({percent(split['supervised_share'])})" if key == "num_supervised_tokens" else ""
    return number(split[key]) + share


def _files(files: Sequence[Mapping[str, Any]]) -> str:
    if not files:
        return ""
    kinds = sorted({" ".join(filter(None, (file.get("format"), file.get("compression")))) for file in files})
    size = sum(file.get("bytes", 0) for file in files)
    shown = f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"
    return f"{counted(len(files), 'file')} ({', '.join(kinds)}), {shown}"


def _advice(line: str) -> Html:
    """A line of advice: what is found in bold, what can be typed as code."""
    fact, colon, cure = line.partition(": ")
    typed = _TYPED.split(cure)
    pieces = [element("code", piece) if number % 2 else piece for number, piece in enumerate(typed)]
    return joined(element("b", fact), colon, pieces)


def _origin(source: Mapping[str, Any]) -> Html:
    """What is known of a source, in two short paragraphs."""
    shapes = ", ".join(f"{number(count)} as {shape}" for shape, count in source["shapes"].items())
    read = f"{shapes}: {source['why_shape']}."
    known = [
        f"licence {source['licence']}" if source.get("licence") else "licence unknown",
        f"revision {source['revision']}" if source.get("revision") else "",
        _files(source.get("files") or ()),
        f"sha256 {source['sha256'][:12]}" if source.get("sha256") else "",
        f"not used: {', '.join(sorted(source['unread_columns']))}" if source["unread_columns"] else "",
    ]
    words = [element("code", piece) if number % 2 else piece for number, piece in enumerate(read.split("`"))]
    return joined(element("p", words), element("p", " · ".join(filter(None, known)), class_="note"))
