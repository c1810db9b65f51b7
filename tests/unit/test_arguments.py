"""What is typed is understood in any order, and text is taken as it is."""

import pytest

from llmtune.arguments import parse
from llmtune.config.compose import Composition, compose
from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError

pytestmark = pytest.mark.fast

NASTY = [
    "def fibonacci(",
    "Hello, world",
    "It's",
    "a=b/c (1).jsonl",
    "123",
    "7e12",
    "null",
    "true",
    "[x]",
    "${oc.env:HOME}",
    "\\${x}",
    "C:\\Users\\",
    "\\\\",
    "x\\'y",
    "'quoted'",
    "a\nb",
    "",
    " lead and trail ",
    "é🙂",
    "{a: b}",
    "# no comment",
]


def test_stages_stand_in_their_order_wherever_they_are_typed() -> None:
    found = parse(["seed=3", "evaluate", "method=full", "train"])
    assert found.stages == ["train", "evaluate"]
    assert found.overrides == ["++seed=3", "method=full"]


def test_groups_take_both_forms() -> None:
    assert parse(["+method=qlora"]).overrides == parse(["method=qlora"]).overrides == ["method=qlora"]
    assert parse(["+experiment=x"]).overrides == ["experiment=x"]


def test_options_stand_anywhere() -> None:
    found = parse(["method=qlora", "--cfg", "job", "seed=2", "-m", "--config-dir=here"])
    assert found.options == ["--cfg", "job", "--multirun", "--config-dir", "here"]
    assert found.multirun


@pytest.mark.parametrize("value", NASTY)
def test_text_arrives_as_typed(value) -> None:
    arguments = parse(["data=embedded_code", f"generate.prompt={value}", f"data.eval_path={value}"])
    config = compose(Composition(arguments.options, arguments.overrides))
    assert isinstance(config, RunConfig)
    assert (config.generate.prompt, config.data.eval_path) == (value, value)


@pytest.mark.parametrize("value", [value for value in NASTY if not value.startswith("[")])
def test_text_arrives_as_typed_in_a_sweep(value) -> None:
    arguments = parse(["-m", "data=embedded_code", "seed=1,2", f"generate.prompt={value}"])
    seen = []
    compose(Composition(arguments.options, arguments.overrides), lambda configs, _: seen.extend(configs) or [0, 0])
    assert [config.generate.prompt for config in seen] == [value, value]


def test_a_list_of_texts_is_swept() -> None:
    arguments = parse(["-m", "data=embedded_code", "generate.prompt=[It's, a (b)]"])
    seen = []
    compose(Composition(arguments.options, arguments.overrides), lambda configs, _: seen.extend(configs) or [0, 0])
    assert [config.generate.prompt for config in seen] == ["It's", "a (b)"]


def test_hydras_missing_marker_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"generate.prompt=\?\?\?: this text can't be taken"):
        parse(["generate.prompt=???"])


def test_a_model_is_an_option_an_id_or_a_folder(tmp_path) -> None:
    assert parse(["model=gpt2"]).overrides == ["model=gpt2"]
    assert parse(["model=Qwen/Qwen3-0.6B"]).overrides == [
        "model=hub",
        "++model.id='Qwen/Qwen3-0.6B'",
        "++model.name='qwen3-0.6b'",
    ]
    folder = tmp_path / "My Model"
    folder.mkdir()
    assert parse([f"model={folder}"]).overrides == [
        "model=folder",
        f"++model.path='{folder}'",
        "++model.name='my-model'",
    ]


def test_a_run_reference_is_taken_as_typed() -> None:
    found = parse(["train", "run=7e12 (1)"])
    assert found.run == "7e12 (1)"
    assert found.overrides == []


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["trian"], "trian: no stage or command. Did you mean train?"),
        (["--multrun"], "--multrun: there is no such option. Did you mean --multirun?"),
        (["generate", "ui"], "ui: one command at a time, generate was named too."),
        (["-m", "model=a/b,gpt2"], "model=a/b,gpt2: a sweep takes named models"),
        (["generate", "train"], "generate: can't stand beside the stage train."),
    ],
)
def test_what_makes_no_sense_is_refused(typed, message) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(typed)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(message)
