import math
from dataclasses import replace

import numpy as np
import pytest

from llmtune.errors import ExportCheckFailed
from llmtune.export.gate.answers import Answers
from llmtune.export.gate.comparison import compare
from llmtune.export.report import Bounds

pytestmark = pytest.mark.fast
BOUNDS = Bounds("made up", logits=0.01, largest_kl=0.05, loss_rise=0.1)
TEXT = {"end_token_ids": [2], "encoded": [[5], [6]], "decoded": ["a", "b"], "rendered": [{"text": "x", "ids": [1]}]}


def answers(
    logits: list[float], tokens: list[int], gaps: list[float], losses: tuple[float, ...] = (1.0, 3.0)
) -> Answers:
    row = np.array([logits], np.float32)
    return Answers(
        logits=[row],
        long=np.zeros((0, len(logits)), np.float32),
        padded=row,
        greedy=np.array([tokens]),
        gaps=np.array([gaps]),
        cache_kl=np.zeros((1, len(tokens))),
        losses=np.array(losses),
        text=TEXT,
    )


def figures(trained: Answers, exported: Answers, bounds: Bounds = BOUNDS) -> dict:
    return {figure.name: figure for figure in compare(trained, exported, bounds)}


def test_figures_by_hand():
    trained = answers([0.0, math.log(3)], [1], [1.0])  # probabilities 1/4, 3/4
    exported = answers([0.0, 0.0], [1], [1.0], (1.5, 3.0))  # 1/2, 1/2
    found = figures(trained, exported)
    assert found["logit_difference"].value == pytest.approx(1.0)
    expected_kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert found["kl_mean"].value == pytest.approx(expected_kl)
    assert found["kl_largest"].value == pytest.approx(expected_kl)
    assert found["top1_agreement"].value == 0.0
    assert found["loss_unmerged"].value == 2.0 and found["loss_exported"].value == 2.25
    assert found["loss_rise"].value == 0.25
    failed = {name for name, figure in found.items() if not figure.passed}
    assert failed == {"logit_difference", "kl_largest", "loss_rise"}


def test_equal_models_pass():
    one = answers([1.0, 2.0], [1, 0], [1.0, 0.5])
    assert all(figure.passed for figure in compare(one, one, BOUNDS))
    assert figures(one, one)["top1_agreement"].value == figures(one, one)["greedy_agreement"].value == 1.0


@pytest.mark.parametrize(("gap", "parted"), [(0.019, 0), (0.021, 1)])
def test_greedy_texts_may_part_at_a_tie_alone(gap, parted):
    # The largest logit is 2 and the bound 0.01 of it, so that a lead up to 0.02 is a tie.
    trained = answers([1.0, 2.0], [3, 4, 5], [1.0, gap, 1.0])
    exported = answers([1.0, 2.0], [3, 6, 7], [1.0, gap, 1.0])
    found = figures(trained, exported)
    assert found["greedy_parted"].value == parted
    assert found["greedy_agreement"].value == pytest.approx(1 / 3)


def test_without_a_bound_on_logits_greedy_text_is_only_reported():
    trained = answers([1.0, 2.0], [3], [1.0])
    exported = answers([1.0, 2.0], [4], [1.0])
    assert figures(trained, exported, Bounds("coarser", mean_kl=0.1))["greedy_parted"].passed


def test_a_nan_in_the_export_never_passes():
    found = figures(answers([1.0, 2.0], [1], [1.0]), answers([math.nan, 2.0], [1], [1.0], (math.nan, 1.0)))
    assert not any(found[name].passed for name in ("logit_difference", "kl_largest", "loss_rise"))


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("encoded", [[5], [7]], "texts_encoded_otherwise"),
        ("decoded", ["a", "b "], "texts_decoded_otherwise"),
        ("rendered", [{"refused": True}], "conversations_rendered_otherwise"),
        ("end_token_ids", [2, 3], "end_tokens_wrong"),
        ("end_token_ids", [], "end_tokens_wrong"),
    ],
)
def test_each_difference_of_text_is_a_fault(key, value, name):
    one = answers([1.0, 2.0], [1], [1.0])
    found = figures(one, replace(one, text={**TEXT, key: value}))
    assert {figure.name: figure.value for figure in found.values() if not figure.passed} == {name: 1.0}


def test_examples_without_supervised_tokens_leave_the_loss_out():
    one = answers([1.0, 2.0], [1], [1.0], ())
    assert not {"loss_rise", "loss_missing"} & set(figures(one, one, Bounds("equal", logits=0.01)))


@pytest.mark.parametrize("part", ["padded", "long"])
def test_what_is_padded_and_what_is_long_is_judged_in_coarse_formats_too(part):
    one, row = answers([1.0, 2.0], [1], [1.0]), np.array([[1.0, 2.0]], np.float32)
    one = replace(one, long=row)
    other = replace(one, **{part: row[:, ::-1]})
    found = figures(one, other, Bounds("coarser", mean_kl=0.1))
    assert {name for name, figure in found.items() if not figure.passed} == {"kl_mean"}


def test_a_cache_that_says_another_thing_than_the_whole_text_is_found_in_coarse_formats_too():
    one = answers([1.0, 2.0], [1], [1.0])
    other = replace(one, cache_kl=np.full((1, 1), 0.2))
    for bounds in (BOUNDS, Bounds("coarser", mean_kl=0.1)):
        assert [figure.name for figure in compare(one, other, bounds) if not figure.passed] == ["cache_kl_mean"]


def test_a_nan_among_padded_rows_never_passes():
    one = answers([1.0, 2.0], [1], [1.0])
    found = figures(one, replace(one, padded=np.array([[math.nan, 2.0]], np.float32)))
    assert not found["logit_difference"].passed and not found["kl_largest"].passed


def test_logits_of_another_shape_are_told():
    with pytest.raises(ExportCheckFailed, match=r"logits of shape \(1, 3\), the trained model \(1, 2\)"):
        figures(answers([1.0, 2.0], [1], [1.0]), answers([1.0, 2.0, 3.0], [1], [1.0]))


def test_a_loss_that_cannot_be_taken_fails_where_it_is_bounded():
    one = answers([1.0, 2.0], [1], [1.0], ())
    assert not figures(one, one)["loss_missing"].passed
