"""The report on prepared data as tables in the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmtune.logs import print_table, say, show, warn
from llmtune.pages.numbers import counted, number, percent
from llmtune.stages.data_advice import PackingFill, advise, likenesses, num_found
from llmtune.stages.shown_examples import SPLIT_NAMES, ShownExample, in_terminal

_COLUMNS = ("split", "rows", "examples", "tokens", "trained on", "mean tokens", "longest", "cut")


def show_report(
    report: Mapping[str, Any],
    shown: Sequence[ShownExample],
    fill: PackingFill | None,
    max_seq_len: int,
) -> None:
    """Show in the terminal what the model will learn from: tables, an example, and last what to look at.

    Args:
        report: the account of prepared data.
        shown: examples, of which the first is shown; none where text may not be written.
        fill: of the micro-batches; None where they aren't planned or aren't packed.
        max_seq_len: tokens of an example at most.
    """
    for source in report["sources"]:
        say(_source(source))
    print_table("data", _COLUMNS, _splits(report["splits"]))
    rows = report["rows"]
    if rows["dropped"]:
        kept = sum(rows["kept"].values())
        title = f"left out: {rows['in'] - kept:,} of {rows['in']:,} rows"
        ordered = sorted(rows["dropped"].items(), key=lambda entry: -entry[1])
        print_table(title, ("reason", "rows"), [(reason, number(count)) for reason, count in ordered])
    for line in _findings(report, fill):
        say(line)
    for example in shown[:1]:
        show(in_terminal(example))
    advice = advise(report, fill, max_seq_len)
    for line in advice:
        warn(line)
    if not advice:
        say("no problem found in the data")


def _source(source: Mapping[str, Any]) -> str:
    shapes = ", ".join(f"{count:,} as {shape}" for shape, count in source["shapes"].items())
    what = "test data" if source["role"] == "eval" else "data"
    return f"{what}: {source['name']}, {counted(source['rows'], 'row')}: {shapes}: {source['why_shape']}"


def _splits(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, split in splits.items():
        if split["num_rows"]:
            figures = ("num_rows", "num_examples", "num_tokens")
            lengths = ("mean_tokens", "longest_tokens", "num_truncated")
            share = percent(split["supervised_share"])
            yield (
                SPLIT_NAMES[name],
                *(number(split[key]) for key in figures),
                share,
                *(number(split[key]) for key in lengths),
            )


def _findings(report: Mapping[str, Any], fill: PackingFill | None) -> Iterator[str]:
    """A line for each kind of thing that was found."""
    if num_found(report["duplicates"]):
        groups = counted(report["duplicates"]["num_groups"], "group")
        yield f"duplicates: {likenesses(report['duplicates'])}, in {groups}"
    outliers = {kind: found["count"] for kind, found in report["outliers"].items() if found["count"]}
    if outliers:
        yield f"outliers: {', '.join(f'{count:,} by {kind}' for kind, count in outliers.items())}"
    personal = report["personal_data"]
    if personal["kinds"]:
        kinds = ", ".join(f"{found['count']:,} {kind.replace('_', ' ')}" for kind, found in personal["kinds"].items())
        yield f"personal data: {kinds} (data.personal_data={personal['action']})"
    if fill is not None and len(fill.num_tokens):
        yield f"packed micro-batches: {percent(fill.mean)} full"
