"""What a person is told to look at, each with the cure; nothing where nothing is wrong."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up_report import LENGTHS, NOTHING, report, source, split, splits

from llmtune.stages.data_advice import PackingFill, advise, most_longer

pytestmark = pytest.mark.fast


def advice(fill: PackingFill | None = None, max_seq_len: int = 512, **changed: Any) -> list[str]:
    return advise(report(**changed), fill, max_seq_len)


def test_clean_data_gets_no_advice() -> None:
    assert advice() == []
    assert advice(PackingFill([500, 480], 512, 1)) == []


def test_what_is_only_read_gets_no_advice_either() -> None:
    empty = {"train": split(0), "validation": split(0), "test": split(25)}
    assert advice(splits=empty, sources=source(role="eval")) == []


@pytest.mark.parametrize(
    ("count", "most", "cure"),
    [
        # 99 of 100 rows have at most 350 tokens, so 384; all five of the bar from 300 on are within the longest, 380.
        (40, 256, "data.max_seq_len=384 would keep them all, data.overlong=split makes windows of them"),
        # 99 of 100 are whole already: the next step is the longest.
        (1, 352, "data.max_seq_len=384 would keep them all, data.overlong=split makes windows of them"),
        (90, 64, "data.overlong=split keeps them whole, as windows (data.max_seq_len=384 would take them in)"),
    ],
)
def test_rows_that_are_cut_name_the_length_that_keeps_them(count: int, most: int, cure: str) -> None:
    said = advice(splits=splits(num_truncated=count, num_cut_tokens=1204), max_seq_len=most)
    verb = "is" if count == 1 else "are"
    assert said == [f"{count} of 250 rows {verb} cut at {most} tokens, 1,204 tokens lost: {cure}"]


def test_a_far_longer_row_stays_cut_and_is_counted() -> None:
    lengths = LENGTHS | {"percentiles": LENGTHS["percentiles"] | {"99": 300, "100": 9000}}
    changed = splits(num_truncated=5, num_cut_tokens=1, longest_uncut_tokens=9000, lengths=lengths)
    # Wanted are 384; the bar from 300 on has five rows, any of which may be longer.
    assert "data.max_seq_len=384 would keep all but 5," in advice(splits=changed, max_seq_len=256)[0]


def test_longer_rows_are_counted_to_the_border_of_their_bar() -> None:
    assert [most_longer(LENGTHS, value) for value in (0, 99, 100, 150, 300, 380, 400)] == [200, 200, 190, 190, 5, 0, 0]


def test_overlap_is_first() -> None:
    sources = [*source(), *source(role="eval")]
    said = advice(
        overlap=NOTHING | {"exact": 14, "near": 3}, warnings=["the test set holds 7 examples"], sources=sources
    )
    assert said == [
        "17 training rows also stand in the test set (14 word for word, 3 nearly): they are left out of training, so "
        "that the test loss stays clean; see how the files were made",
        "the test set holds 7 examples",
    ]
    assert advice(overlap=NOTHING | {"normalised": 1}) == [
        "1 training row also stands in the test set (1 but for case, white space and punctuation): it is left out of "
        "training, so that the test loss stays clean"
    ]


@pytest.mark.parametrize(("share", "is_said"), [(0.049, True), (0.05, False)])
def test_few_supervised_tokens(share: float, is_said: bool) -> None:
    said = advice(splits=splits(supervised_share=share))
    assert bool(said) == is_said
    assert all(line.startswith("only 5 % of the training tokens are trained on: ") for line in said)


def test_a_template_that_drops_thinking() -> None:
    said = advice(splits=splits(num_thinking_dropped=214))
    assert len(said) == 1 and "in 214 conversations" in said[0] and "data.chat_template=FILE" in said[0]


@pytest.mark.parametrize(("action", "count"), [("warn", 1), ("mask", 0), ("drop", 0), ("ignore", 0)])
def test_personal_data_names_the_cure_where_none_was_taken(action: str, count: int) -> None:
    kinds = {"email": {"count": 61, "rows": 48, "listed": []}, "key": {"count": 1, "rows": 1, "listed": []}}
    said = advice(personal_data={"action": action, "kinds": kinds})
    assert len(said) == count
    assert all("(61 email, 1 key)" in line and "data.personal_data=mask" in line for line in said)


def test_records_that_can_not_be_read() -> None:
    assert advice(bad_records={"count": 1, "by_reason": {}, "listed": []}) == [
        "1 record can't be read and is left out: mend it"
    ]


@pytest.mark.parametrize(
    ("exact", "near", "dropped", "said"),
    [
        (25, 0, {}, []),
        (
            20,
            6,
            {"duplicate": 20},
            [
                "26 rows of 250 (10 %) repeat others, 6 of them stay in and weigh more: data.duplicates=near keeps one "
                "of each"
            ],
        ),
        (
            26,
            0,
            {"duplicate": 26},
            [
                "26 rows of 250 (10 %) repeat others: they are left out, and what is learnt from is less than the file "
                "seems to hold"
            ],
        ),
    ],
)
def test_many_duplicates(exact: int, near: int, dropped: dict[str, int], said: list[str]) -> None:
    found = NOTHING | {"exact": exact, "near": near, "num_groups": 9}
    assert advice(duplicates=found, sources=source(dropped=dropped)) == said


@pytest.mark.parametrize(
    ("reason", "count", "is_said"),
    [
        ("more words than data.max_words", 63, True),
        ("more words than data.max_words", 62, False),
        ("over the limit of train examples", 200, False),
        ("duplicate", 200, False),
        ("outlier: length", 200, False),
        ("no docstring", 200, False),
        ("empty body", 200, False),
        ("empty completion", 63, True),
    ],
)
def test_much_that_is_left_out(reason: str, count: int, is_said: bool) -> None:
    said = advice(rows={"in": 250, "kept": {}, "dropped": {reason: count}})
    assert said == ([f"25 % of the rows are left out ({reason}): see whether that is meant"] if is_said else [])


def test_columns_that_nothing_is_made_of() -> None:
    said = advice(sources=[*source(unread_columns=["id"]), *source(unread_columns=list("hgfedcba"))])
    cure = "where one matters, name it in a data.*_column key"
    assert said == [
        f"column id of poems.jsonl is not used: {cure}",
        f"columns a, b, c, d, e, f and 2 more of poems.jsonl are not used: {cure}",
    ]


@pytest.mark.parametrize(("p95", "longest", "is_said"), [(80, 200, True), (40, 200, False), (80, 160, False)])
def test_very_uneven_lengths(p95: int, longest: int, is_said: bool) -> None:
    lengths = LENGTHS | {"percentiles": {"50": 10, "95": p95, "99": longest, "100": longest}}
    said = advice(splits=splits(lengths=lengths))
    assert bool(said) == is_said
    assert all("the median is 10 tokens, the longest 200: " in line for line in said)


@pytest.mark.parametrize(
    ("tokens", "num_steps", "is_said"),
    [([300, 300], 1, True), ([300, 300], 2, False), ([400, 400], 1, False)],
)
def test_packed_micro_batches_that_fewer_would_do(tokens: list[int], num_steps: int, is_said: bool) -> None:
    fill = PackingFill(tokens, 512, num_steps)
    assert fill.mean == sum(tokens) / 1024
    said = advice(fill)
    assert bool(said) == is_said
    assert all("59 % full: a larger train.micro_batch_size" in line for line in said)


def test_micro_batches_of_steps_of_tokens_need_no_other_accumulation() -> None:
    (said,) = advice(PackingFill([300, 300], 512, 1, filled_with_tokens=True))
    assert said == (
        "packed micro-batches are 59 % full: a larger train.micro_batch_size makes the same steps of fewer, fuller ones"
    )


def outliers(**counts: int) -> dict[str, Any]:
    return {kind: {"count": count, "listed": ["a:1: odd"] * count} for kind, count in counts.items()}


def test_outliers_that_are_listed_are_never_no_problem() -> None:
    assert advice(outliers=outliers(length=3, repetition=0, characters=1)) == [
        "some rows are unlike the others (3 by length, 1 by characters): look at them in the list, data.outliers=drop "
        "leaves them out"
    ]
    assert advice(outliers=outliers(length=1, loss=2))[1:] == [
        "some rows are unlike the others (2 by loss): look at them in the list, data.loss_outliers=drop leaves them out"
    ]


def test_outliers_that_were_left_out_need_nothing() -> None:
    rows = {"in": 250, "kept": {}, "dropped": {"outlier: length": 3}}
    assert advice(outliers=outliers(length=3), rows=rows) == []
    assert len(advice(outliers=outliers(length=3, characters=1), rows=rows)) == 1


@pytest.mark.parametrize(
    "reason",
    [
        "not valid JSON, nothing after it was read",
        "the file is cut short here, its gzip data have no end; get it whole",
        "the zstd data are damaged at about this line, nothing after it was read; get the file anew",
    ],
)
def test_a_file_that_was_read_in_part_has_a_line_of_its_own(reason: str) -> None:
    listed = ["a.jsonl:3: not valid JSON", f"b.jsonl.gz:57: {reason}"]
    assert advice(bad_records={"count": 2, "by_reason": {}, "listed": listed}) == [
        "2 records can't be read and are left out: mend them",
        f"a file was read in part only, the rest of it is lost: b.jsonl.gz:57: {reason}",
    ]


def test_marks_of_turns_are_said_to_be_learnt_anyway() -> None:
    said = advice(sources=source(unread_columns=["train", "messages.train", "messages.weight"]))
    assert said[0].startswith(
        "messages.train, messages.weight of poems.jsonl are not followed: every assistant turn is"
    )
    assert said[1].startswith("column train of poems.jsonl is not used")
