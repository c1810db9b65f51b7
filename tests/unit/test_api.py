"""The Python interface: the words it types, what it refuses, what it imports."""

import dataclasses
import json
import subprocess
import sys

import pytest

import llmtune
from llmtune import FineTuneConfig, LLMFineTuner, session
from llmtune.arguments import parse
from llmtune.config.schema import groups, keys
from llmtune.config.validate import flatten, to_plain
from llmtune.errors import ConfigError, LlmtuneError, RunError, UserError
from llmtune.runs.layout import RunFolder
from llmtune.session import Outcome, config_for

pytestmark = pytest.mark.fast

TEXTS = ["a b=(1).jsonl", "It's.jsonl", "[x],{y}.jsonl", "7e12", 'say "hi" ${x}.jsonl', "--flag", "#no comment"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def done(tmp_path, monkeypatch) -> list[list[str]]:
    """What was handed to the pipeline, which does nothing here but succeed in one folder."""
    words: list[list[str]] = []

    def perform(arguments):
        words.append([*arguments.stages, *(f"{key}={value}" for key, value in arguments.typed.items())])
        return Outcome(0, RunFolder(tmp_path / "run"))

    monkeypatch.setattr(session, "perform", perform)
    return words


def test_importing_it_takes_no_time_and_nothing_heavy() -> None:
    code = (
        "import time; start = time.process_time(); from llmtune import FineTuneConfig, LLMFineTuner; "
        "took = time.process_time() - start; import json, sys; print(json.dumps([took, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    took, modules = json.loads(done.stdout)
    assert "llmtune.api" in modules
    assert not {"torch", "hydra", "transformers", "mlflow", "peft", "pydantic", "rich"} & set(modules)
    assert took < 0.2


def test_the_package_gives_two_names_and_no_other() -> None:
    assert {"FineTuneConfig", "LLMFineTuner"} <= set(dir(llmtune))
    with pytest.raises(AttributeError, match="module 'llmtune' has no attribute 'FineTune'"):
        llmtune.FineTune  # noqa: B018


def test_each_argument_is_the_word_for_its_key() -> None:
    config = FineTuneConfig(
        model_name="gpt2",
        method="lora",
        num_epochs=5,
        batch_size=2,
        learning_rate=3e-4,
        lora_r=8,
        lora_alpha=24,
        max_seq_length=256,
        warmup_steps=7,
        weight_decay=0.2,
        gradient_accumulation=3,
        lora_dropout=0.25,
        seed=9,
        overrides=["tracking=none", "--format", "hf"],
    )
    made = flatten(to_plain(config_for(parse(["train", "data.path=x", *config.words]))))
    expected = {
        "model.id": "openai-community/gpt2",
        "method.name": "lora",
        "train.num_epochs": 5,
        "train.micro_batch_size": 2,
        "train.learning_rate": 3e-4,
        "method.rank": 8,
        "method.alpha": 24.0,
        "data.max_seq_len": 256,
        "train.warmup_steps": 7,
        "train.weight_decay": 0.2,
        "train.gradient_accumulation_steps": 3,
        "method.dropout": 0.25,
        "seed": 9,
        "tracking.backend": "none",
        "export.formats": ["hf"],
    }
    assert {name: made[name] for name in expected} == expected


def test_every_argument_has_a_key_that_is_there() -> None:
    from llmtune.api import _KEYS

    arguments = {field.name for field in dataclasses.fields(FineTuneConfig)} - {"overrides"}
    assert arguments == set(_KEYS)
    assert set(_KEYS.values()) <= {key.name for key in keys()} | set(groups())


@pytest.mark.parametrize(("method", "rate"), [(None, 2e-4), ("lora", 2e-4), ("qlora", 2e-4), ("full", 2e-5)])
def test_what_is_left_out_takes_the_default(method, rate) -> None:
    config = FineTuneConfig(method=method)
    assert config.words == ([f"method={method}"] if method else [])
    assert config_for(parse(["train", "data.path=x", *config.words])).train.learning_rate == rate


@pytest.mark.parametrize("chosen", [{"method": "full"}, {"overrides": ["method=full"]}])
def test_lora_arguments_are_left_out_with_full_aloud(capsys, chosen) -> None:
    config = FineTuneConfig(lora_r=8, lora_alpha=16, num_epochs=1, **chosen)
    assert sorted(config.words) == ["method=full", "train.num_epochs=1"]
    assert "warning: lora_r, lora_alpha: left out, method=full trains no adapter" in capsys.readouterr().out
    FineTuneConfig(method="full")
    FineTuneConfig(lora_r=8)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({"num_epochs": 0}, ["num_epochs: train.num_epochs=0"]),
        ({"num_epochs": 2.5, "lora_r": "x"}, ["lora_r: method.rank=x", "num_epochs: train.num_epochs=2.5"]),
        ({"batch_size": True}, ["batch_size: train.micro_batch_size=true"]),
        ({"learning_rate": [1e-4, 2e-4]}, ["learning_rate: train.learning_rate=[0.0001, 0.0002]"]),
        ({"learning_rate": float("nan")}, ["learning_rate: train.learning_rate="]),
        ({"lora_dropout": 1.5}, ["lora_dropout: method.dropout=1.5"]),
        ({"method": "lorra"}, ["method=lorra: there is no such option. Did you mean lora?"]),
        ({"model_name": "gtp2"}, ["model_name: model=gtp2: there is no such option. Did you mean gpt2?"]),
        ({"overrides": ["train.epochs=3"]}, ["train.epochs: there is no such key."]),
        ({"overrides": ["train.max_steps=5"], "warmup_steps": 5}, ["warmup_steps: train.warmup_steps=5: must be"]),
        ({"overrides": "seed=1"}, ["overrides='seed=1': is one text; give a list of them, ['seed=1']."]),
        ({"overrides": ["-m", "seed=1,2"]}, ["overrides: --multirun: belongs on the command line; give KEY=VALUE."]),
        ({"overrides": ["train"]}, ["overrides: train: belongs on the command line"]),
        ({"overrides": ["generate"]}, ["overrides: generate: belongs on the command line"]),
        ({"overrides": ["--cfg", "job"]}, ["overrides: --cfg: belongs on the command line"]),
        ({"overrides": ["run=latest"]}, ["overrides: run=latest: take LLMFineTuner.from_run('latest')."]),
    ],
)
def test_a_mistake_is_told_when_the_config_is_made(given, problems) -> None:
    with pytest.raises(ConfigError) as caught:
        FineTuneConfig(**given)
    found = sorted(caught.value.problems)
    assert len(found) == len(problems)
    for text, start in zip(found, problems, strict=True):
        assert text.startswith(start)


def test_making_a_config_says_nothing_of_data_and_makes_nothing(tmp_path, capsys) -> None:
    FineTuneConfig()
    FineTuneConfig(overrides=["experiment=quickstart"])
    FineTuneConfig(overrides=["data=embedded_code"])
    FineTuneConfig(overrides=["experiment=balanced"])
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", TEXTS)
def test_paths_arrive_as_given(done, text) -> None:
    tuner = LLMFineTuner(FineTuneConfig(num_epochs=1))
    tuner.train(text, f"eval {text}")
    assert done == [["train", "train.num_epochs=1", f"data.path={text}", f"data.eval_path=eval {text}"]]
    config = flatten(to_plain(config_for(parse(done[0]))))
    assert (config["data.path"], config["data.eval_path"]) == (text, f"eval {text}")


def test_a_model_in_a_folder_of_any_name_is_that_folder(tmp_path) -> None:
    folder = tmp_path / "a b=(1), it's"
    folder.mkdir()
    config = config_for(parse(["train", "data.path=x", *FineTuneConfig(model_name=str(folder)).words]))
    assert (config.model.source, config.model.path) == ("folder", str(folder))


def test_each_training_is_typed_anew_and_later_work_names_its_run(done, tmp_path) -> None:
    tuner = LLMFineTuner(FineTuneConfig(seed=3))
    for file in ("a.jsonl", "b.jsonl"):
        tuner.train(file)
        assert tuner.run_folder == tmp_path / "run"
        tuner.evaluate("test.jsonl")
    trained = ["evaluate", f"run={tmp_path / 'run'}", "data.eval_path=test.jsonl"]
    assert done == [
        ["train", "seed=3", "data.path=a.jsonl"],
        trained,
        ["train", "seed=3", "data.path=b.jsonl"],
        trained,
    ]


@pytest.mark.parametrize(
    "ask", [lambda tuner: tuner.save_model("m"), lambda tuner: tuner.export("m"), lambda tuner: tuner.run_folder]
)
def test_what_needs_a_trained_run_says_so(ask) -> None:
    with pytest.raises(RunError, match=r"nothing is trained yet; call train\(...\) first, or take LLMFineTuner.from"):
        ask(LLMFineTuner())


def test_a_mistake_in_what_is_asked_for_is_the_command_lines(done) -> None:
    tuner = LLMFineTuner()
    with pytest.raises(ConfigError, match=r"generate\.max_new_tokens=0"):
        tuner.generate("x", max_length=0)
    with pytest.raises(ConfigError, match=r"generate\.num_samples=0"):
        tuner.generate("x", num_samples=0)
    assert done == []


def test_a_run_that_ended_badly_in_other_processes_raises(monkeypatch, tmp_path) -> None:
    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr(session, "perform", lambda arguments: Outcome(3, folder))
    with pytest.raises(LlmtuneError, match="run: ended with exit status 3"):
        LLMFineTuner().train("x")
    from llmtune.runs.status import RunStatusFile

    RunStatusFile(folder.status_file).start()
    RunStatusFile(folder.status_file).end("FAILED", "out of luck")
    with pytest.raises(LlmtuneError, match="run: out of luck"):
        LLMFineTuner().train("x")


def test_a_full_disk_is_one_sentence(monkeypatch) -> None:
    def perform(arguments):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(session, "perform", perform)
    with pytest.raises(LlmtuneError, match="runs/x: no space left: make room"):
        LLMFineTuner().train("x")


def test_a_folder_that_holds_something_is_refused_before_any_work(done, tmp_path) -> None:
    tuner = LLMFineTuner()
    tuner.train("x")
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="isn't an empty folder; name another place"):
            tuner.save_model(place)
    assert len(done) == 1


def test_a_reference_that_leads_nowhere_is_told_at_once() -> None:
    with pytest.raises(RunError, match=r"run=nothing-here: no run folder is there"):
        LLMFineTuner.from_run("nothing-here")


def test_a_run_goes_on_with_its_own_examples(tmp_path, done) -> None:
    from llmtune.config.saved import save_config

    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    save_config(config_for(parse(["data.path=x"])), run / "config.yaml")
    tuner = LLMFineTuner.from_run("r")
    assert tuner.run_folder == run
    with pytest.raises(RunError, match="a run goes on with its own examples; to train its adapter on others, take"):
        tuner.train("other.jsonl")
    tuner.train()
    assert done == [["train", f"run={run}"]]


def test_started_by_a_launcher_it_says_how_to_have_several_processes(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start the script with plain python and set overrides="):
        LLMFineTuner()
