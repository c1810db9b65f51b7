"""Words that a shell is offered for a line."""

import pytest

from llmtune.arguments import COMMANDS, PLAIN_COMMANDS, STAGES
from llmtune.completion import answer, suggestions
from llmtune.config.schema import groups, keys
from llmtune.flags import FLAGS

pytestmark = pytest.mark.fast


def test_first_words_are_stages_commands_groups_and_sections() -> None:
    found = suggestions("llmtune ")
    assert {*STAGES, *COMMANDS, *PLAIN_COMMANDS} <= set(found)
    assert {"method=", "model=", "experiment=", "train.", "seed=", "run="} <= set(found)
    assert "train=" not in found  # one option only
    assert [word for word in found if "hydra" in word or word.startswith("source_")] == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("llmtune prep", ["prepare"]),
        ("llmtune train eva", ["evaluate", "evaluate."]),
        ("llmtune train tra", ["tracking.", "tracking=", "train."]),
        ("llmtune generate prep", []),
        ("llmtune method=", ["method=full", "method=lora", "method=qlora"]),
        ("llmtune train -m +method=lora,q", ["+method=lora,qlora"]),
        ("llmtune +exp", ["+experiment=", "+export."]),
        ("llmtune +experiment=quick", ["+experiment=quickstart"]),
        ("llmtune train.num", ["train.num_cycles=", "train.num_epochs="]),
        ("llmtune train.packing=", ["train.packing=false", "train.packing=true"]),
        (
            "llmtune train.optimizer=ada",
            ["train.optimizer=adafactor", "train.optimizer=adamw", "train.optimizer=adamw_8bit"],
        ),
        ("llmtune method=full method.", ["method.learning_rate="]),
        ("llmtune train --method full method.", ["method.learning_rate="]),
        ("llmtune --model distil", ["distilgpt2"]),
        ("llmtune --format ", ["adapter", "hf"]),
        ("llmtune --model gpt2 --epo", ["--epochs"]),
        ("llmtune --cfg ", ["job"]),
        ("llmtune runs --s", ["--sort", "--status"]),
        ("llmtune nonsense.", []),
        ("llmtune seed=", []),
    ],
)
def test_what_fits_is_offered(line, found) -> None:
    offered = suggestions(line)
    assert [word for word in offered if word in found] == found
    assert line.endswith("ada") or line.endswith(" --format ") or offered == found


def test_every_key_and_flag_can_be_completed() -> None:
    offered = {word for group in groups() for word in suggestions(f"llmtune {group}.")} | set(suggestions("llmtune "))
    missing = {key.name for key in keys() if f"{key.name}=" not in offered}
    assert missing == {"method.name", "data.source", "source_run", "source_weights"}
    assert set(FLAGS) <= set(suggestions("llmtune --"))


def test_files_folders_and_runs_are_offered(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my.jsonl", "with space.jsonl", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "runs" / "a-run").mkdir(parents=True)
    (tmp_path / "runs" / "a-run" / "config.yaml").touch()
    assert suggestions("llmtune data.path=m") == ["data.path=my.jsonl"]
    assert suggestions("llmtune --train-data ") == ["my.jsonl", "runs/"]
    assert suggestions("llmtune data.path=") == ["data.path=my.jsonl", "data.path=runs/"]
    assert suggestions("llmtune train run=") == ["run=latest", "run=runs/", "run=runs/a-run"]
    assert suggestions("llmtune generate --model-path runs/a") == ["runs/a-run", "runs/a-run/"]


def test_a_shell_is_answered_in_its_form() -> None:
    line = {"COMP_LINE": "llmtune method=qlora and more", "COMP_POINT": "15"}
    assert answer(["-sc", "query=bash"], line) == "method=full method=lora method=qlora"
    assert answer(["--shell-completion", "query=fish"], {"COMP_LINE": "llmtune method=q"}) == "method=qlora"
    assert answer(["-sc", "query=bash"], {}) is not None


@pytest.mark.parametrize("typed", [[], ["train"], ["-sc", "install=bash"], ["-sc"], ["train", "-sc", "query=bash"]])
def test_other_lines_are_not_answered(typed) -> None:
    assert answer(typed, {"COMP_LINE": "llmtune "}) is None
