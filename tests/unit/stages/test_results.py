"""The closing part of a run: what a person reads after the table."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtune.config.method import UntrainedConfig
from llmtune.config.model import ModelConfig
from llmtune.config.run import RunConfig
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.stages.context import RunContext
from llmtune.stages.results import show_results
from llmtune.tracking.null import NullTracker

pytestmark = pytest.mark.fast

CONFIG = RunConfig(model=ModelConfig(name="tiny", source="folder", path="tiny"))
TRAINED: dict[str, Any] = {
    "num_trainable": 10,
    "num_parameters": 100,
    "tokens_per_second_per_device": 5.0,
    "seconds": 3.0,
    "steps": 40,
    "peak_memory_gib": 1.0,
    "advice": ["Validation loss rose. Try train.num_epochs=1."],
}


def _evaluated(base: float, tuned: float) -> dict[str, Any]:
    figures = {"loss": tuned, "perplexity": 12.0, "bits_per_byte": 1.0, "tokens_per_second": 9.0}
    return {**figures, "base_loss": base, "base_perplexity": 14.0, "base_bits_per_byte": 1.1}


def _shown(folder: Path, capsys: pytest.CaptureFixture[str], config: RunConfig = CONFIG, **stages: Any) -> list[str]:
    """The lines of the closing part of a run whose stages ended with these results."""
    manifest = Manifest(folder / "manifest.json")
    for name, results in stages.items():
        manifest.finish_stage(name, results)
    context = RunContext(config=config, folder=RunFolder(folder), manifest=manifest, tracker=NullTracker())
    capsys.readouterr()
    show_results(context)
    return capsys.readouterr().out.splitlines()


def test_advice_stands_once_after_the_table_and_before_the_places(tmp_path, capsys):
    lines = _shown(tmp_path, capsys, train=TRAINED, evaluate=_evaluated(2.0, 1.5))
    at = [number for number, line in enumerate(lines) if line.startswith("advice: ")]
    assert [lines[number] for number in at] == ["advice: Validation loss rose. Try train.num_epochs=1."]
    table_end = max(number for number, line in enumerate(lines) if line.startswith("└"))
    places = next(number for number, line in enumerate(lines) if line.startswith("run folder: "))
    assert table_end < at[0] < places


def test_advice_of_an_earlier_command_stands_where_evaluation_ends(tmp_path, capsys):
    assert sum(line.startswith("advice: ") for line in _shown(tmp_path, capsys, train=TRAINED)) == 1
    lines = _shown(tmp_path, capsys, evaluate=_evaluated(2.0, 1.5))
    assert sum(line.startswith("advice: ") for line in lines) == 1


def test_a_good_run_gets_no_advice(tmp_path, capsys):
    lines = _shown(tmp_path, capsys, train={**TRAINED, "advice": []}, evaluate=_evaluated(2.0, 1.5))
    assert not any(line.startswith("advice") for line in lines)


@pytest.mark.parametrize(("tuned", "found"), [(2.0, "no better than"), (2.5, "worse than")])
def test_a_test_loss_that_did_not_fall_is_said_with_what_to_try(tmp_path, capsys, tuned, found):
    lines = _shown(tmp_path, capsys, train={**TRAINED, "advice": []}, evaluate=_evaluated(2.0, tuned))
    (advice,) = [line for line in lines if line.startswith("advice: ")]
    assert f"is {found} the base model (test loss {tuned:.4f}, base model 2.0000). Try train.learning_rate=" in advice


def test_a_test_loss_that_did_not_fall_repeats_no_cure(tmp_path, capsys):
    lines = _shown(tmp_path, capsys, train=TRAINED, evaluate=_evaluated(2.0, 2.0))
    assert [line.count("Try") for line in lines if line.startswith("advice: ")] == [1, 0]


def test_another_file_is_judged_for_a_run_of_ours_and_not_for_weights_from_elsewhere(tmp_path, capsys):
    ours = replace(CONFIG, source_run=str(tmp_path))
    assert any("no better" in line for line in _shown(tmp_path, capsys, ours, evaluate=_evaluated(2.0, 2.0)))
    theirs = replace(CONFIG, method=UntrainedConfig(), source_weights=None, source_run=None)
    assert not any("no better" in line for line in _shown(tmp_path, capsys, theirs, evaluate=_evaluated(2.0, 2.0)))


def test_one_line_says_how_to_read_the_perplexity(tmp_path, capsys):
    lines = _shown(tmp_path, capsys, train=TRAINED, evaluate=_evaluated(2.0, 1.5))
    (reading,) = [line for line in lines if line.startswith("perplexity 12.00: ")]
    assert "Excellent" in reading and "base model" in reading


def test_what_was_forgotten_is_a_row(tmp_path, capsys):
    general = {"loss": 3.3, "base_loss": 3.0}
    lines = _shown(tmp_path, capsys, train=TRAINED, evaluate={**_evaluated(2.0, 1.5), "general": general})
    (row,) = [line for line in lines if "general text loss" in line]
    assert [word for word in row.split() if word[0] in "+-0123456789"] == ["3.0000", "3.3000", "+10.0%"]


def test_no_row_without_general_text(tmp_path, capsys):
    lines = _shown(tmp_path, capsys, train=TRAINED, evaluate=_evaluated(2.0, 1.5))
    assert not any("general text" in line for line in lines)
