"""The figures of scripts/bench_train.py, from what contenders tell."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.fast

SCRIPTS = Path(__file__).parents[2] / "scripts"


def _script(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as its siblings import it
    spec.loader.exec_module(module)
    return module


figures = _script("bench_train_figures")
work = _script("bench_train_work")
_script("bench_train_turns")
_script("bench_train_ours")
trainer = _script("bench_train_trainer")
contenders = _script("bench_train_contenders")
bench = _script("bench_train")

SHAPE = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 100,
}
# A layer: q and o 8 x 8 each, k and v 8 x 4 each, three matrices of 8 x 16; the head 8 x 100.
WEIGHTS = 2 * (2 * 64 + 2 * 32 + 3 * 128) + 800


def _turn(tokens: int, seconds: float, **others: float) -> dict[str, float]:
    return {
        "tokens": tokens,
        "seconds": seconds,
        "steps": 2,
        "positions": tokens,
        "peak_bytes": 0,
        "loss": 1.0,
    } | others


def _ready(loss: float | None, precision: str = "bf16") -> dict[str, object]:
    return {"first_loss": loss, "precision": precision, "start_seconds": 1.0, "compile_seconds": 0.0}


@pytest.mark.parametrize(("method", "of_a_weight"), [("lora", 4), ("qlora", 4), ("full", 6)])
def test_a_tokens_flops_are_those_of_its_weights_and_of_causal_attention(method, of_a_weight) -> None:
    lengths = np.array([10, 30])
    attended = (10**2 + 30**2) / 40  # each token sees half of its example, in two products of two operations

    found = figures.flops_per_token(SHAPE, method, lengths)

    assert found == of_a_weight * WEIGHTS + 6 * attended * 8 * 2


def test_a_head_may_be_wider_than_its_share_of_the_hidden_size() -> None:
    narrow = figures.flops_per_token(SHAPE, "lora", np.array([10]))

    wide = figures.flops_per_token(SHAPE | {"head_dim": 4}, "lora", np.array([10]))

    more_weights = 2 * 8 * (2 * 8 + 2 * 4)
    assert wide - narrow == 4 * more_weights + 6 * 10 * 8 * 2


def test_a_row_has_the_median_of_its_turns_their_spread_and_its_padding() -> None:
    turns = [_turn(100, 2.0), _turn(100, 1.0, positions=200, peak_bytes=2**31), _turn(100, 4.0, loss=0.5)]
    row = figures.Row("other", _ready(2.0), turns, ratios=[3.0, 1.0, 2.0])

    found = figures.figures_of(row, flops=10.0, peak=1000.0)

    assert [found[name] for name in ("least", "tokens_per_second", "most")] == [25, 50, 100]
    assert (found["step_ms"], found["peak_gb"], found["last_loss"]) == (1000, 2, 0.5)
    assert found["padding"] == pytest.approx(1 - 300 / 400)
    assert found["share_of_peak"] == 0.5
    assert found["ours_over_it"] == 2
    line = figures.line_of(found)
    assert "2.00x" in line and "25.0%" in line and "50.0%" in line
    assert len(line) == len(figures.HEAD)


def test_one_that_left_is_a_line_that_says_why() -> None:
    found = figures.figures_of(figures.Row("other", error="OutOfMemoryError: of 80 GiB"), flops=1.0, peak=1.0)

    assert figures.line_of(found).split() == ["other", "(OutOfMemoryError:", "of", "80", "GiB)"]


def test_ratios_are_of_the_same_round() -> None:
    assert figures.ratios([10.0, 30.0, 5.0], [5.0, 10.0]) == [2.0, 3.0]


@pytest.mark.parametrize(
    ("loss", "precision", "agrees"),
    [
        (2.0009, "fp32", True),
        (2.0011, "fp32", False),
        (2.019, "bf16", True),
        (2.021, "bf16", False),
        (float("nan"), "bf16", False),
        (None, "bf16", True),
    ],
)
def test_losses_agree_as_far_as_their_types_allow(loss, precision, agrees) -> None:
    rows = [figures.Row("ours", _ready(2.0, "fp32")), figures.Row("other", _ready(loss, precision))]

    found = figures.disagreements([*rows, figures.Row("gone", error="left")])

    assert (found == []) is agrees
    assert all("ours" in text and "other" in text for text in found)


@pytest.mark.parametrize(
    ("resident", "expected"),
    [
        (None, [["ours", "a", "b", "c"]]),
        (4, [["ours", "a", "b", "c"]]),
        (3, [["ours", "a", "b"], ["ours", "c"]]),
        (2, [["ours", "a"], ["ours", "b"], ["ours", "c"]]),
        (1, [["ours"], ["a"], ["b"], ["c"]]),
    ],
)
def test_ours_stays_with_as_many_others_as_there_is_room_for(resident, expected) -> None:
    assert figures.groups(["ours", "a", "b", "c"], resident, "ours") == expected


def test_examples_are_told_apart_whatever_their_order() -> None:
    one, other = np.array([1, 2, 3]), np.array([4, 5])

    assert work.identity([one, other]) == work.identity([other, one])
    assert work.identity([one, other]) != work.identity([one, np.array([5, 5])])
    assert work.identity([np.array([6]), np.array([9])]) != work.identity([np.array([7]), np.array([8])])


@pytest.mark.parametrize(
    ("tokens", "how", "rows"),
    [
        (None, {"padded": True, "packs_rows": False, "on_gpu": False}, 8),
        (None, {"padded": False, "packs_rows": True, "on_gpu": False}, 4),  # 8 examples of 250 in rows of 500
        (4096, {"padded": True, "packs_rows": False, "on_gpu": False}, 16),
        (4096, {"padded": True, "packs_rows": False, "on_gpu": True}, 2),
        (4096, {"padded": False, "packs_rows": False, "on_gpu": True}, 16),
        (4096, {"padded": False, "packs_rows": True, "on_gpu": True}, 2),
    ],
)
def test_others_have_batches_of_about_as_many_tokens(tokens, how, rows) -> None:
    lengths = [2, 498, 250, 250] if tokens is None else [12, 500]
    ids = [np.ones(length, np.int64) for length in lengths]
    settings = bench.PRESETS["cpu"]["embedded-lora"] | {"tokens": tokens}
    asked = _work(settings)

    found = trainer.batches_of(asked, work.Examples(ids, ids, 1), **how)

    assert found.rows == rows
    assert found.longest == (498 if tokens is None else 2048)


def _work(settings: dict):
    known = {name: value for name, value in (bench._DEFAULTS | settings).items() if name != "contenders"}
    return work.Work(**known, folder="unused")


@pytest.mark.parametrize(("preset", "num_cells"), [("cpu", 3), ("gpu", 16)])
def test_a_presets_cells_are_work_for_contenders_that_there_are(preset, num_cells) -> None:
    cells = bench.cells_of(bench._parser().parse_args(["--preset", preset, "--steps", "7"]))

    assert len(cells) == num_cells
    for settings in cells.values():
        assert set(settings["contenders"]) <= set(contenders.CONTENDERS)
        assert settings["contenders"][0] == "ours"
        assert (settings["data"] == "embedded") == (settings["tokens"] is None)
        assert _work(settings).steps == 7, "what is typed counts"


def test_cells_can_be_chosen_and_unknown_contenders_are_refused() -> None:
    chosen = ["--preset", "gpu", "--cells", "1b-lora-mix,8b-qlora-rows-checkpointing"]
    arguments = bench._parser().parse_args(chosen)
    assert list(bench.cells_of(arguments)) == ["1b-lora-mix", "8b-qlora-rows-checkpointing"]

    unknown = bench.cells_of(bench._parser().parse_args([*chosen, "--contenders", "ours,nobody"]))
    with pytest.raises(SystemExit, match="nobody"):
        bench._check(arguments, unknown)


def test_who_isnt_installed_takes_no_part_and_says_so(tmp_path) -> None:
    entry = contenders.Entry(print, "package_of_nobody")
    assert contenders.why_not(entry, [], on_gpu=False) == "package_of_nobody isn't installed"

    (tmp_path / "package_of_nobody").mkdir()
    (tmp_path / "package_of_nobody" / "__init__.py").touch()
    assert contenders.why_not(entry, [str(tmp_path)], on_gpu=False) is None
    assert contenders.why_not(contenders.CONTENDERS["unsloth"], [], on_gpu=False) == "needs a GPU"
    assert contenders.why_not(contenders.CONTENDERS["ours"], [], on_gpu=False) is None


def test_documents_of_a_mix_are_short_for_the_most_part_and_fit_a_row() -> None:
    lengths = work.document_lengths("mix", 3)

    assert len(lengths) == 4096
    assert min(lengths) == 16 and max(lengths) == 2048
    assert 170 < np.median(lengths) < 190
    assert work.document_lengths("rows", 3) == [2048] * 3
