"""What the typed overrides are put on."""

import dataclasses
import json
from datetime import datetime
from pathlib import Path

import pytest

from llmtune.arguments import parse
from llmtune.config.compose import Composition, compose
from llmtune.config.saved import save_config
from llmtune.errors import ConfigError, RunError
from llmtune.runs.lookup import new_run_folder
from llmtune.runs.status import RunStatusFile
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
    assert (config.train.num_epochs, config.data.source, config.data.num_examples) == (2, "embedded", 500)
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


@pytest.fixture
def adapter(working_folder, tiny_llama):
    """The folder of an adapter on the tiny Llama."""
    folder = working_folder / "adapter"
    folder.mkdir()
    content = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_llama), "r": 4, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps({**content, "target_modules": ["q_proj"]}))
    (folder / "adapter_model.safetensors").touch()
    return folder


def _composed(*words):
    """The configs of a command, one or a sweep's."""
    arguments, found = parse(words), []
    start = starting_point(arguments)
    composition = Composition(
        arguments.options,
        start.with_typed(arguments.overrides),
        start.saved,
        lambda config: start.applied(config, arguments),
    )
    composed = compose(composition, lambda configs, _: found.extend(configs) or [0] * len(configs))
    return found or [composed]


def test_an_adapter_is_trained_on_from_however_it_is_named(working_folder, adapter, tiny_llama) -> None:
    _file(working_folder, "goon", "method:\n  adapter: adapter\n")
    save_config(config_for(parse(["data.path=x", f"model={tiny_llama}"])), working_folder / "saved.yaml")
    typed = ["data.path=x", "method.adapter=adapter"]
    for words in (typed, ["-m", "seed=1,2", *typed], ["experiment=goon", "data.path=x"]):
        for config in _composed(*words):
            assert (config.method.adapter, config.method.rank, config.method.alpha) == (str(adapter), 4, 8.0)
            assert (config.method.target_modules, config.model.path) == (("q_proj",), str(tiny_llama))
    config = config_for(parse(["--config-name", "saved.yaml", "method.adapter=adapter"]))
    assert (config.method.adapter, config.method.rank) == (str(adapter), 4)
    with pytest.raises(RunError, match=r"method\.adapter=nope: no run folder is there"):
        _composed("-m", "seed=1,2", "data.path=x", "method.adapter=nope")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-name=c.yaml", "run=latest"], "--config-name c.yaml: makes a new run, and run= names one"),
        (["--config-name=c.yaml", "experiment=balanced"], "experiment=balanced: this config is complete already"),
        (["experiment=sweep_learning_rate"], "is a sweep of 4 runs; start it on the command line"),
    ],
)
def test_what_does_not_go_together_is_refused(working_folder, words, message) -> None:
    save_config(config_for(parse(["data.path=x"])), working_folder / "c.yaml")
    (working_folder / "runs" / "20260101-000000-lora-m-abcd").mkdir(parents=True)
    (working_folder / "runs" / "20260101-000000-lora-m-abcd" / "config.yaml").write_text("seed: 1\n")
    RunStatusFile(working_folder / "runs" / "20260101-000000-lora-m-abcd" / "status.json").start()
    with pytest.raises(ConfigError, match=message):
        config_for(parse(words))


def test_latest_is_the_newest_run_that_trains_where_training_is_asked(working_folder) -> None:
    base = config_for(parse(["data.path=x"]))
    trained = new_run_folder(Path("runs"), "lora", "m", datetime(2026, 1, 1))
    measured = new_run_folder(Path("runs"), "lora", "m", datetime(2026, 1, 2))
    for folder, source in ((trained, None), (measured, str(trained.path))):
        save_config(dataclasses.replace(base, source_run=source), folder.config_file)
        RunStatusFile(folder.status_file).start()
    for words, expected in ((["train"], trained), ([], trained), (["evaluate"], measured)):
        run = starting_point(parse([*words, "run=latest"])).run
        assert run is not None and run.folder.path.absolute() == expected.path
