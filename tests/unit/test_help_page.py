"""The help pages tell a person what there is, and fit their terminal."""

import sys
from pathlib import Path

import pytest

from command_time import times_importing_torch
from llmtune.arguments import COMMANDS, PLAIN_COMMANDS, STAGES
from llmtune.cli import run
from llmtune.config.resources import group_options
from llmtune.config.schema import described_keys, groups
from llmtune.errors import ConfigError
from llmtune.flags import FLAGS
from llmtune.help_page import WIDTH, help_page
from llmtune.help_topics import COMMANDS as COMMAND_TOPICS
from llmtune.help_topics import STAGES as STAGE_TOPICS

pytestmark = pytest.mark.fast

TOPICS = [*STAGES, *COMMANDS, *PLAIN_COMMANDS]


def test_every_stage_and_command_has_a_page_and_nothing_else_has() -> None:
    assert tuple(STAGE_TOPICS) == STAGES
    assert set(COMMAND_TOPICS) == {*COMMANDS, *PLAIN_COMMANDS}


def test_the_main_page_names_stages_commands_groups_options_and_flags() -> None:
    page = help_page()
    assert [topic for topic in TOPICS if f"\n  {topic:<10} " not in page] == []
    assert [group for group in groups() if f"  {group}:" not in page] == []
    assert [flag for flag in FLAGS if f"  {flag} " not in page] == []
    for group in groups():
        missing = [option for option in group_options(group) if option not in page and option != "default"]
        assert missing == []
    assert "smollm2_135m_instruct*" in page
    assert page.count("\n  llmtune") == 6  # five examples, and where to read on


@pytest.mark.parametrize("started", ["/bin/llmtune", "/somewhere/llmtune/__main__.py"])
@pytest.mark.parametrize("topic", [None, *TOPICS, *groups()])
def test_a_page_fits_100_columns(topic, started, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    lines = help_page(topic).splitlines()
    assert len(lines) > 3
    assert [line for line in lines if len(line) > WIDTH or line != line.rstrip()] == []


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topics_page_says_what_it_does_and_gives_examples(topic) -> None:
    page = help_page(topic)
    assert page.startswith(f"llmtune {topic}: ")
    assert f"usage: llmtune {topic} " in page
    assert "\nreads   " in page
    assert "\nwrites  " in page
    assert page.count(f"\n  llmtune {topic}") >= 2


@pytest.mark.parametrize(("topic", "group"), [("train", "train"), ("train", "method"), ("generate", "generate")])
def test_a_topics_page_has_the_keys_of_its_groups(topic, group) -> None:
    page = help_page(topic)
    for key in described_keys(group):
        assert f"  {key.name}=" in page or key.names_shape
    assert "--batch-size" in help_page("train")


def test_a_key_shows_default_type_shapes_and_meaning() -> None:
    lines = help_page("train").splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("  method.rank=16 "))
    assert lines[at].endswith(" int >= 1  (only lora, qlora)")
    assert lines[at + 1].startswith("      Rank of the update")
    rate = next(line for line in lines if line.startswith("  train.learning_rate= "))
    assert rate.endswith("number > 0; by default that of method.learning_rate")


def test_an_option_of_the_working_folder_is_shown(tmp_path, monkeypatch) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text("# @package _global_\n# My own try.\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "  experiment=mine " in help_page("experiment")
    assert "My own try." in help_page()


def test_commands_are_shown_as_llmtune_was_started(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/llmtune/__main__.py"])
    page = help_page("ui")
    assert "usage: python -m llmtune ui " in page
    assert "\n  python -m llmtune ui\n" in page
    assert page.startswith("llmtune ui: ")


def test_it_names_the_pages_of_a_checkout_and_none_that_are_not_there(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert "\n  docs/tutorial.md " in help_page()
    monkeypatch.setattr("llmtune.help_page.resource_dir", lambda name: tmp_path / name)
    assert ".md" not in help_page()


def test_an_unknown_topic_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"trian: no stage, command or group. Did you mean train\? Known: prepare, train"
    ):
        help_page("trian")


def test_the_first_bare_word_has_its_page(capsys) -> None:
    for typed in (["method", "--help"], ["--help", "generate", "train"], ["seed=1", "runs", "-h"]):
        topic = next(word for word in typed if word in (*TOPICS, *groups()))
        assert run(typed) == 0
        assert capsys.readouterr().out.rstrip() == help_page(topic)
    assert run(["--prompt", "train", "--help"]) == 0
    assert capsys.readouterr().out.rstrip() == help_page()
    assert run(["trian", "--help"]) == 2
    assert "trian: no stage, command or group. Did you mean train?" in capsys.readouterr().err
    assert run(["generate", "--prompt", "-h"]) == 2
    assert "type --prompt=-h." in capsys.readouterr().err


def test_a_page_comes_at_once() -> None:
    code = "from llmtune.help_page import help_page; help_page('train')"
    assert times_importing_torch([sys.executable, "-c", code]) < 0.5
