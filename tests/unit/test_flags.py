"""Flags stand for keys, mix with overrides, and a person's first command lines compose."""

from pathlib import Path

import pytest

from llmtune.arguments import _FOREIGN, _WITH_VALUE, parse
from llmtune.config.schema import groups, keys
from llmtune.errors import ConfigError
from llmtune.flags import FLAGS
from llmtune.session import config_for

pytestmark = pytest.mark.fast

TRAINING = [
    ("train --model gpt2 --train-data F --method lora --epochs 3 --batch-size 4", {"train.num_epochs": 3}),
    ("train --model gpt2 --train-data F --method lora --lora-r 16 --lora-alpha 32", {"method.rank": 16}),
    ("train --model gpt2 --train-data F --method qlora --batch-size 1", {"train.micro_batch_size": 1}),
    ("train --model gpt2 --train-data F --method full --epochs 5", {"method.name": "full"}),
    ("train --model gpt2 --train-data F --method qlora --batch-size 1 --epochs 1", {"method.name": "qlora"}),
    ("train --model gpt2 --train-data F --method full --batch-size 32 --epochs 5", {"train.learning_rate": 2e-5}),
    ("train --model gpt2 --train-data F --method lora --batch-size 8 --epochs 3", {"train.micro_batch_size": 8}),
    ("train --model gpt2 --train-data F --method lora", {"train.learning_rate": 2e-4}),
    ("train --model gpt2 --train-data F --method qlora", {"method.alpha": 32.0}),
    (
        "train --model gpt2 --train-data F --eval-data E --method lora --epochs 5 --learning-rate 5e-4",
        {"train.learning_rate": 5e-4, "data.eval_path": "E"},
    ),
    ("train --model gpt2 --train-data F --method qlora --max-seq-length 1024 --epochs 3", {"data.max_seq_len": 1024}),
    ("train --model gpt2 --train-data F --epochs 5 --learning-rate 2e-4", {"method.name": "lora"}),
    ("train --method qlora --batch-size 1", {"method.name": "qlora", "data.source": "embedded"}),
    ("train --max-seq-length 256 --batch-size 4", {"data.max_seq_len": 256, "data.source": "embedded"}),
    ("train --epochs 5 --train-data F", {"train.num_epochs": 5, "data.source": "files"}),
]
AFTER = [
    ("generate --model-path R --prompt PROMPT", {"generate.max_new_tokens": 100}),
    (
        "generate --model-path R --prompt PROMPT --max-length 200 --temperature 0.9 --num-samples 3",
        {"generate.max_new_tokens": 200, "generate.temperature": 0.9, "generate.num_samples": 3},
    ),
    ("generate --model-path R --prompt PROMPT --temperature 1.0 --num-samples 3", {"generate.temperature": 1.0}),
    ("generate --model-path R --prompt PROMPT --max-length 100", {"generate.temperature": 0.7}),
    ("evaluate --model-path R --eval-data E", {"data.eval_path": "E"}),
    ("export --model-path R --output-path O --format hf", {"export.formats": ("hf",), "export.path": "O"}),
    ("export --model-path R --output-path O --format adapter,hf", {"export.formats": ("adapter", "hf")}),
]
PROMPTS = ["Once upon a time", "def fibonacci(", "Hello, world", "It's", "a = b (c)", "123", "The diagnosis of"]


@pytest.fixture
def trained_run(tmp_path, monkeypatch) -> Path:
    """A run folder with a config and a finished checkpoint's place, in the working folder."""
    monkeypatch.chdir(tmp_path)
    from llmtune.config.saved import save_config

    folder = tmp_path / "runs" / "20260101-000000-lora-gpt2-abcd"
    (folder / "checkpoints" / "checkpoint-100").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-final").symlink_to("checkpoint-100")
    save_config(config_for(parse(["model=gpt2", "data.path=a.jsonl"])), folder / "config.yaml")
    return folder


def _value(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("line", "expected"), TRAINING)
def test_training_lines_compose(tmp_path, monkeypatch, line, expected) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_for(parse(line.split()))
    assert {name: _value(config, name) for name in expected} == expected
    if "--model" in line:
        assert config.model.id == "openai-community/gpt2"


@pytest.mark.parametrize("reference", ["runs/20260101-000000-lora-gpt2-abcd", "checkpoint"])
@pytest.mark.parametrize(("line", "expected"), AFTER)
def test_lines_on_a_trained_run_compose(trained_run, reference, line, expected) -> None:
    place = str(trained_run / "checkpoints" / "checkpoint-final") if reference == "checkpoint" else reference
    for prompt in PROMPTS if "PROMPT" in line else ["-"]:
        words = [{"R": place, "PROMPT": prompt}.get(word, word) for word in line.split()]
        config = config_for(parse(words))
        assert {name: _value(config, name) for name in expected} == expected
        assert config.model.id == "openai-community/gpt2"
        assert prompt in {"-", config.generate.prompt}
        assert config.source_run == str(trained_run)
        checkpoint = str(trained_run / "checkpoints" / "checkpoint-100")
        assert config.source_weights == (checkpoint if reference == "checkpoint" else None)


def test_each_flag_stands_for_something_that_is_there() -> None:
    known = {key.name for key in keys()} | set(groups()) | {"run"}
    assert set(FLAGS.values()) <= known
    assert len(set(FLAGS.values())) == len(FLAGS) == 21


def test_what_other_tools_options_point_to_is_there() -> None:
    known = {f"{flag} " for flag in (*FLAGS, *_WITH_VALUE.values())} | {f"{key.name}=" for key in keys()} | {"run="}
    assert set(_FOREIGN.values()) <= known
    assert not {*_FOREIGN} & {*FLAGS, *_WITH_VALUE}


@pytest.mark.parametrize("text", ["a b=(1).jsonl", "It's", "[x]", "7e12", "--looks-like-a-flag"])
def test_a_flags_text_arrives_as_typed(text) -> None:
    config = config_for(parse(["generate", "--model", "gpt2", f"--prompt={text}", "--eval-data", "x", "seed=3"]))
    assert (config.generate.prompt, config.seed) == (text, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs"], "--epochs: needs a value, --epochs VALUE (it stands for train.num_epochs=VALUE)."),
        (
            ["--prompt", "--epochs", "3"],
            "--prompt: needs a value, --prompt VALUE (it stands for generate.prompt=VALUE). "
            "To take --epochs as the text, type --prompt=--epochs.",
        ),
        (["evaluate", "--run", "r"], "--run: there is no such option. Type run=VALUE."),
        (["-r", "r"], "-r: there is no such option. Type run=VALUE."),
        (["--resolve"], "--resolve: there is no such option."),
        (["--lr", "1e-4"], "--lr: there is no such option. Type --learning-rate VALUE."),
        (["--lora-rank", "8"], "--lora-rank: there is no such option. Type --lora-r VALUE."),
        (["--output-dir", "out"], "--output-dir: there is no such option. Type runs_dir=VALUE."),
        (["--epoch", "3"], "--epoch: there is no such option. Did you mean --epochs?"),
        (["--num-epochs", "3"], "--num-epochs: there is no such option. Type train.num_epochs=VALUE."),
        (["train", "runs"], "runs: stands first"),
        (["--cfg"], "--cfg: needs a value."),
    ],
)
def test_a_flag_that_makes_no_sense_is_one_problem(words, message) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(words)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(message)


def test_a_run_id_that_looks_like_a_number_stays_text(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run_id in ("7e12" + "0" * 28, "1" * 32):
        assert parse(["evaluate", f"run={run_id}"]).run == run_id
        assert parse(["evaluate", "--model-path", run_id]).run == run_id
