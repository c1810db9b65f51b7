"""What the typed overrides are put on."""

import pytest

from llmtune.arguments import parse
from llmtune.config.saved import save_config
from llmtune.errors import ConfigError
from llmtune.session import config_for
from llmtune.starting_point import starting_point

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _file(folder, name, text):
    (folder / "experiments").mkdir(exist_ok=True)
    (folder / "experiments" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")


@pytest.mark.parametrize(
    ("words", "beneath"),
    [
        ([], ["experiment=quickstart"]),
        (["method=full", "seed=2"], ["experiment=quickstart"]),
        (["data.path=x"], []),
        (["data.id=a/b"], []),
        (["data=embedded_code"], []),
        (["experiment=plain"], ["experiment=[quickstart,plain]"]),
        (["experiment=[plain,plainer]"], ["experiment=[quickstart,plain,plainer]"]),
        (["experiment=plain", "data.path=x"], []),
        (["experiment=on_file"], []),
        (["experiment=on_option"], []),
        (["experiment=on_other"], []),
        (["-m", "experiment=plain,on_file"], []),
        (["-m", "experiment=plain,plainer"], ["experiment=[quickstart,plain],[quickstart,plainer]"]),
        (["-m", "seed=1,2"], ["experiment=quickstart"]),
        (["generate"], ["data=embedded_code"]),
    ],
)
def test_what_names_no_data_is_the_quick_start_and_more(working_folder, words, beneath) -> None:
    _file(working_folder, "plain", "train:\n  num_epochs: 2\n")
    _file(working_folder, "plainer", "seed: 5\n")
    _file(working_folder, "on_file", "data:\n  path: mine.jsonl\n")
    _file(working_folder, "on_option", "defaults:\n  - override /data: embedded_code\n")
    _file(working_folder, "on_other", "defaults:\n  - on_file\n  - _self_\n")
    assert list(starting_point(parse(words)).overrides) == beneath


def test_an_experiment_on_the_quick_start_wins_over_it(working_folder, capsys) -> None:
    _file(working_folder, "plain", "train:\n  num_epochs: 2\n")
    config = config_for(parse(["+experiment=plain", "seed=7"]))
    assert (config.train.num_epochs, config.data.source, config.data.num_examples) == (2, "embedded", 400)
    assert "no data named, so this is experiment=[quickstart,plain]" in capsys.readouterr().err
    config = config_for(parse(["+experiment=plain", "data.path=x.jsonl"]))
    assert (config.train.num_epochs, config.data.source, config.data.num_examples) == (2, "files", None)


def test_a_file_typed_beside_an_experiment_on_other_data_takes_its_place() -> None:
    config = config_for(parse(["experiment=quickstart", "data.path=x.jsonl"]))
    assert (config.data.source, config.train.num_epochs) == ("files", 1)


def test_a_saved_config_is_started_from(working_folder) -> None:
    config = config_for(parse(["data.path=x.jsonl", "method=full", "generate.prompt=${a} 'b'"]))
    save_config(config, working_folder / "mine.yaml")
    for words in (["--config-name", "mine.yaml"], ["--config-dir=.", "-cn", "mine"], ["--config-name=./mine.yaml"]):
        assert config_for(parse(words)) == config
    changed = config_for(parse(["--config-name=mine.yaml", "method=lora", "train.num_epochs=1"]))
    assert (changed.method.name, changed.train.num_epochs, changed.train.learning_rate) == ("lora", 1, 2e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--config-name mine: there is no such file"),
        ("defaults:\n  - method: lora\n", "is no resolved config.*put differences into experiments/NAME.yaml"),
        ("train:\n  num_epochs: 3\n", "is no resolved config"),
    ],
)
def test_another_file_is_no_saved_config(working_folder, text, message) -> None:
    if text is not None:
        (working_folder / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        config_for(parse(["--config-name", "mine"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "run=gpt2"], "data.eval_path: is missing"),
        (["evaluate", "run=gpt2", "method=full"], "method=full: run=gpt2 is a whole model; leave one of them out."),
        (["evaluate", "run=gpt2", "model=distilgpt2", "data.eval_path=x"], "model=distilgpt2: run=gpt2 is a whole"),
    ],
)
def test_what_does_not_go_with_a_whole_model(words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        config_for(parse(words))


def test_a_whole_model_brings_itself() -> None:
    config = config_for(parse(["evaluate", "run=gpt2", "data.eval_path=x"]))
    assert (config.model.id, config.method.name, config.data.eval_path) == ("openai-community/gpt2", "none", "x")
    config = config_for(parse(["export", "run=gpt2"]))
    assert (config.data.source, config.method.name) == ("embedded", "none")
    config = config_for(parse(["generate", "model=gpt2", "--prompt", "x"]))
    assert (config.model.id, config.method.name) == ("openai-community/gpt2", "none")
