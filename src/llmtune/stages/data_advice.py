"""What a person should look at in prepared data before training on it, each with what to do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtune.data.deciding.decisions import DUPLICATE, OUTLIER, OVER_LIMIT, OVERLAP, THINNED
from llmtune.data.preparing.report import LOSS_OUTLIER
from llmtune.pages.numbers import counted, number, percent

_LEFT_OUT = {**OUTLIER, "loss": LOSS_OUTLIER}
"""By kind of outlier, the reason of those that are left out."""
_COVERED = "99"
"""Per cent of the rows that a longer `max_seq_len` shall keep whole."""
_LENGTH_STEP = 128
_FAR = 4
"""Times `max_seq_len` from which longer rows are better split than kept whole."""
_FEW_SUPERVISED = 0.05
_MANY_DUPLICATES = 0.1
_MANY_DROPPED = 0.25
_EMBEDDED = ("no docstring", "empty body", "docstring and code on one line")
"""Why a function of the embedded packages gives no example."""
_MEANT = {*DUPLICATE.values(), *OVERLAP.values(), *OUTLIER.values(), *OVER_LIMIT.values(), THINNED, *_EMBEDDED}
"""Reasons of which there is a line of its own, or that were asked for."""
_ENDS_READING = ("nothing after it was read", "cut short", "damaged at about this line")
"""Words of reasons that more was lost for than one record."""
_MARKS = ("train", "training", "weight", "mask", "masked", "loss")
"""Keys with which other programs mark turns that aren't learnt."""
_SKEWED = 16
"""Times the median that the longest row of very uneven lengths has, and a quarter of which the 95th per cent has."""
_LOW_FILL = 0.75
_MOST_COLUMNS = 6


@dataclass(frozen=True)
class PackingFill:
    """How full the packed micro-batches of an epoch's first steps are."""

    num_tokens: Sequence[int]
    """Tokens of each micro-batch."""
    micro_batch_tokens: int
    """Tokens that a micro-batch has room for."""
    num_steps: int
    """Steps that the micro-batches make up."""
    filled_with_tokens: bool = False
    """Whether a step is a number of tokens, which micro-batches of any size make up."""

    @property
    def mean(self) -> float:
        """Share of the room that holds tokens."""
        return sum(self.num_tokens) / max(1, self.micro_batch_tokens * len(self.num_tokens))


def advise(report: Mapping[str, Any], fill: PackingFill | None, max_seq_len: int) -> list[str]:
    """A line for each thing that may spoil what is learnt, the gravest first, with its cure.

    Args:
        report: the account of prepared data.
        fill: of the micro-batches; None where they aren't planned or aren't packed.
        max_seq_len: tokens of an example at most.
    """
    return [
        *_overlap(report),
        *_supervision(report["splits"]["train"]),
        *_cut(report["splits"], max_seq_len),
        *_thinking(report["splits"]),
        *report["warnings"],
        *_personal_data(report["personal_data"]),
        *_bad_records(report["bad_records"]),
        *_read_in_part(report["bad_records"]),
        *_outliers(report),
        *_duplicates(report),
        *_dropped(report["rows"]),
        *_unread(report["sources"]),
        *_skewed(report["splits"]["train"]),
        *_fill(fill),
    ]


def num_found(counts: Mapping[str, Any]) -> int:
    """How many there are of all likenesses: exact, normalised and near."""
    return sum(counts.get(kind, 0) for kind in ("exact", "normalised", "near"))


def likenesses(counts: Mapping[str, Any]) -> str:
    """How many there are of each likeness, in words."""
    words = {"exact": "word for word", "normalised": "but for case, white space and punctuation", "near": "nearly"}
    return ", ".join(f"{counts[kind]:,} {said}" for kind, said in words.items() if counts.get(kind))


def _overlap(report: Mapping[str, Any]) -> Iterator[str]:
    if found := num_found(report["overlap"]):
        is_one = found == 1
        has_file = any(source["role"] == "eval" for source in report["sources"])
        yield (
            f"{counted(found, 'training row')} also {'stands' if is_one else 'stand'} in the test set "
            f"({likenesses(report['overlap'])}): {'it is' if is_one else 'they are'} left out of training, so that the "
            f"test loss stays clean{'; see how the files were made' if has_file else ''}"
        )


def _supervision(train: Mapping[str, Any]) -> Iterator[str]:
    if train["num_tokens"] and train["supervised_share"] < _FEW_SUPERVISED:
        yield (
            f"only {percent(train['supervised_share'])} of the training tokens are trained on: see in the examples "
            "whether the answers are whole; data.shape and the data.*_column keys say what is prompt and what is answer"
        )


def _cut(splits: Mapping[str, Mapping[str, Any]], max_seq_len: int) -> Iterator[str]:
    num_cut = sum(split["num_truncated"] for split in splits.values())
    if not num_cut:
        return
    rows, tokens = (sum(split[name] for split in splits.values()) for name in ("num_rows", "num_cut_tokens"))
    said = (
        f"{number(num_cut)} of {counted(rows, 'row')} {'is' if num_cut == 1 else 'are'} cut at {max_seq_len:,} tokens, "
        f"{counted(tokens, 'token')} lost"
    )
    lengths = [split["lengths"] for split in splits.values() if split["num_rows"]]
    longest = max(split["longest_uncut_tokens"] for split in splits.values())
    wanted = _rounded(max(found["percentiles"][_COVERED] for found in lengths))
    if wanted <= max_seq_len:
        wanted = _rounded(longest)
    if wanted > _FAR * max_seq_len:
        yield f"{said}: data.overlong=split keeps them whole, as windows (data.max_seq_len={wanted} would take them in)"
        return
    left = sum(most_longer(found, wanted) for found in lengths)
    kept = f"all but {left:,}" if left else "them all"
    yield f"{said}: data.max_seq_len={wanted} would keep {kept}, data.overlong=split makes windows of them"


def most_longer(lengths: Mapping[str, Any], value: float) -> int:
    """How many rows are longer than a value at most: all of the bar that it lies in are counted."""
    edges = [*lengths["edges"][1:-1], lengths["percentiles"]["100"]]  # the last bar ends where the longest row does
    return sum(size for edge, size in zip(edges, lengths["counts"], strict=True) if edge > value)


def _thinking(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if count := sum(split["num_thinking_dropped"] for split in splits.values()):
        yield (
            f"the chat template drops earlier thinking in {counted(count, 'conversation')}: it is neither read nor "
            "learnt there; data.chat_template=FILE takes a template that keeps it"
        )


def _personal_data(found: Mapping[str, Any]) -> Iterator[str]:
    if found["action"] != "warn" or not found["kinds"]:
        return
    kinds = ", ".join(f"{entry['count']:,} {kind.replace('_', ' ')}" for kind, entry in found["kinds"].items())
    yield (
        f"personal data or secrets ({kinds}), which the model may repeat: data.personal_data=mask puts placeholders in "
        "their place, data.personal_data=drop leaves those rows out"
    )


def _bad_records(bad: Mapping[str, Any]) -> Iterator[str]:
    if bad["count"]:
        are, them = ("is", "it") if bad["count"] == 1 else ("are", "them")
        yield f"{counted(bad['count'], 'record')} can't be read and {are} left out: mend {them}"


def _read_in_part(bad: Mapping[str, Any]) -> Iterator[str]:
    for line in bad["listed"]:
        if any(words in line for words in _ENDS_READING):
            yield f"a file was read in part only, the rest of it is lost: {line}"


def _outliers(report: Mapping[str, Any]) -> Iterator[str]:
    dropped = report["rows"]["dropped"].keys()
    left_in = {kind: found for kind, found in report["outliers"].items() if _LEFT_OUT.get(kind) not in dropped}
    for keys, kinds in (("data.outliers", OUTLIER.keys()), ("data.loss_outliers", ("loss",))):
        found = {kind: left_in[kind]["count"] for kind in kinds if kind in left_in and left_in[kind]["count"]}
        if found:
            said = ", ".join(f"{count:,} by {kind}" for kind, count in found.items())
            yield f"some rows are unlike the others ({said}): look at them in the list, {keys}=drop leaves them out"


def _duplicates(report: Mapping[str, Any]) -> Iterator[str]:
    training = [source for source in report["sources"] if source["role"] == "train"]
    found, rows = num_found(report["duplicates"]), sum(source["rows"] for source in training)
    if found <= _MANY_DUPLICATES * rows:
        return
    stay = found - sum(source["dropped"].get(reason, 0) for source in training for reason in DUPLICATE.values())
    said = f"{counted(found, 'row')} of {rows:,} ({percent(found / rows)}) repeat others"
    if stay <= 0:
        yield f"{said}: they are left out, and what is learnt from is less than the file seems to hold"
    else:
        yield f"{said}, {stay:,} of them stay in and weigh more: data.duplicates=near keeps one of each"


def _dropped(rows: Mapping[str, Any]) -> Iterator[str]:
    for reason, count in rows["dropped"].items():
        if count > _MANY_DROPPED * rows["in"] and reason not in _MEANT:
            yield f"{percent(count / rows['in'])} of the rows are left out ({reason}): see whether that is meant"


def _unread(sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for source in sources:
        marks = [name for name in source["unread_columns"] if "." in name and name.rpartition(".")[2] in _MARKS]
        if marks:
            yield (
                f"{', '.join(sorted(marks))} of {source['name']} {'is' if len(marks) == 1 else 'are'} not followed: "
                "every assistant turn is learnt, whatever its mark; make turns that shall not be learnt user or system "
                "turns"
            )
        if unread := sorted(set(source["unread_columns"]) - set(marks)):
            more = f" and {len(unread) - _MOST_COLUMNS:,} more" if len(unread) > _MOST_COLUMNS else ""
            yield (
                f"{'column' if len(unread) == 1 else 'columns'} {', '.join(unread[:_MOST_COLUMNS])}{more} of "
                f"{source['name']} {'is' if len(unread) == 1 else 'are'} not used: where one matters, name it in a "
                "data.*_column key"
            )


def _skewed(train: Mapping[str, Any]) -> Iterator[str]:
    if not train["num_rows"]:
        return
    median, many, most = (train["lengths"]["percentiles"][share] for share in ("50", "95", "100"))
    if most > _SKEWED * median and many > _SKEWED / 4 * median:
        yield (
            f"lengths are very uneven, the median is {median:,} tokens, the longest {most:,}: every token weighs the "
            "same, so a few long rows decide much of what is learnt; data.max_words leaves them out"
        )


def _fill(fill: PackingFill | None) -> Iterator[str]:
    if fill is not None and len(fill.num_tokens) > fill.num_steps and fill.mean < _LOW_FILL:
        fewer = "" if fill.filled_with_tokens else " with fewer train.gradient_accumulation_steps"
        yield (
            f"packed micro-batches are {percent(fill.mean)} full: a larger train.micro_batch_size{fewer} makes the "
            "same steps of fewer, fuller ones"
        )


def _rounded(length: float) -> int:
    return -(-int(length) // _LENGTH_STEP) * _LENGTH_STEP
