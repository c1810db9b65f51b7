"""What is typed is understood in any order, and text is taken as it is."""

import pytest

from llmtune.arguments import asks_for_help, first_bare_word, parse
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
    assert (config.generate.prompt, config.data.eval_path) == (value, None if value == "null" else value)


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


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ("[<|im_start|>,<|im_end|>]", ("<|im_start|>", "<|im_end|>")),
        ("[ <a> , it's no ${x} ]".replace("'", "’"), ("<a>", "it’s no ${x}")),
        ("['[INST]','a, b']", ("[INST]", "a, b")),
        ("[]", ()),
    ],
)
def test_tokens_in_a_list_are_taken_as_typed(value, tokens) -> None:
    arguments = parse(["data=embedded_code", f"data.add_tokens={value}"])
    config = compose(Composition(arguments.options, arguments.overrides))
    assert isinstance(config, RunConfig)
    assert config.data.add_tokens == tokens


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
        (["run="], "run=: is empty; "),
        (["generate", "--model-path", ""], "run=: is empty; "),
        (["method.adapter="], "method.adapter=: is empty; "),
        (["--model", ""], "model=: is empty; "),
        (["+experiment= "], "experiment=: is empty; "),
        (["+experiment=a", "+experiment=b"], "experiment is typed twice, a and b; for both type experiment=[a,b]."),
        (
            ["experiment=[a,b]", "+experiment=c"],
            "experiment is typed twice, [a,b] and c; for both type experiment=[a,b,c].",
        ),
        (["method=lora", "--method", "full"], "method is typed twice, lora and full; leave one out."),
        (["-m", "method=lora", "method=full"], "method is typed twice, lora and full; leave one out."),
        (["run=a", "--model-path", "b"], "run is typed twice, a and b; leave one out."),
        (["--shell-completion", "foo"], "--shell-completion foo: must be install=SHELL or uninstall=SHELL"),
        (["-sc", "install=tcsh"], "-sc install=tcsh: must be install=SHELL"),
    ],
)
def test_what_makes_no_sense_is_refused(typed, message) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(typed)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(message)


def test_the_same_option_twice_and_a_sweep_are_no_contradiction() -> None:
    assert parse(["method=lora", "--method", "lora"]).typed == {"method": "lora"}
    assert parse(["-m", "method=lora", "method=lora,full"]).multirun


@pytest.mark.parametrize("key", ["data.eval_path", "method.adapter", "model.revision", "tracking.uri", "data.path"])
def test_null_takes_a_text_back(key) -> None:
    found = parse(["data=embedded_code", f"{key}=somewhere", f"{key}=null"])
    assert found.overrides[-1] == f"++{key}=null"
    assert key not in found.typed
    assert parse([f"{key}=./null"]).overrides[-1] == f"++{key}='./null'"


def test_null_takes_a_saved_text_back() -> None:
    saved = {"data": {"source": "files", "path": "a", "eval_path": "b"}, "model": {"name": "m", "source": "hub"}}
    saved["model"] |= {"id": "a/b", "revision": "main"}
    arguments = parse(["data.eval_path=null", "model.revision=null", "generate.prompt=null"])
    config = compose(Composition(overrides=arguments.overrides, saved=saved))
    assert isinstance(config, RunConfig)
    assert (config.data.eval_path, config.model.revision, config.generate.prompt) == (None, None, "null")


def test_null_is_swept_beside_a_text() -> None:
    arguments = parse(["-m", "data=embedded_code", "data.eval_path=[null,a b]"])
    seen = []
    compose(Composition(arguments.options, arguments.overrides), lambda configs, _: seen.extend(configs) or [0, 0])
    assert [config.data.eval_path for config in seen] == [None, "a b"]


@pytest.mark.parametrize(
    ("typed", "asks", "word"),
    [
        (["train", "--help"], True, "train"),
        (["-h", "method"], True, "method"),
        (["nonsense", "--nonsense", "-h"], True, "nonsense"),
        (["--nonsense", "3", "train", "-h"], True, "train"),
        (["--prompt", "hello", "-m", "model=gpt2", "--help"], True, None),
        (["generate", "--prompt", "-h"], False, "generate"),
        (["generate", "--prompt=-h"], False, "generate"),
    ],
)
def test_help_is_asked_for_where_it_is_no_flags_value(typed, asks, word) -> None:
    assert asks_for_help(typed) == asks
    assert first_bare_word(typed) == word
