"""What a person types first."""

import sys

import pytest

from command_time import times_importing_torch
from llmtune.cli import run
from llmtune.config.schema import groups


@pytest.mark.fast
def test_help_shows_stages_groups_and_examples(capsys) -> None:
    assert run(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {group}:" in page for group in groups())
    for word in ("prepare", "train", "evaluate", "export", "generate", "ui", "qlora", "quickstart", "--multirun"):
        assert word in page


@pytest.mark.fast
def test_without_data_it_is_the_quick_start_and_says_so(capsys) -> None:
    assert run(["--cfg", "job"]) == 0
    shown = capsys.readouterr()
    assert "experiment=quickstart" in shown.err
    assert "source: embedded" in shown.out
    assert run(["--cfg", "job", "method=full", "train.num_epochs=2"]) == 0
    assert "name: full" in capsys.readouterr().out


@pytest.mark.fast
def test_named_data_is_not_the_quick_start(capsys) -> None:
    assert run(["--cfg", "job", "data.path=my file.jsonl"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "path: my file.jsonl" in shown.out


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "llmtune: trian: no stage or command. Did you mean train?"),
        (["method=qlra"], "llmtune: method=qlra: there is no such option. Did you mean qlora?"),
        (
            ["+train.lerning_rate=1"],
            "llmtune: train.lerning_rate: there is no such key. Did you mean train.learning_rate?",
        ),
        (["--cfg", "hydra"], "llmtune: --cfg hydra: only --cfg job is known."),
        (["seed=a", "data.nmu=3"], "llmtune: 2 problems\n  "),
        (["generate", "-m", "seed=1,2"], "llmtune: -m: a sweep runs stages"),
    ],
)
def test_mistakes_end_with_status_2_and_one_message(capsys, words, message) -> None:
    assert run(words) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.fast
@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job", "method=qlora"]])
def test_help_and_config_come_at_once(words) -> None:
    assert times_importing_torch([sys.executable, "-m", "llmtune", *words]) < 1


def test_generate_without_a_prompt_says_what_to_set(workplace, capsys) -> None:
    assert workplace.type("generate") == 2
    assert "generate.prompt: is missing" in capsys.readouterr().err
