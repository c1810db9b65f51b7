"""Going on with other data, weights or choices than a run began with is refused by key; what is harmless may change."""

import shutil

import pytest

from .conftest import ASSETS, SHORT

UNTRACKED = "tracking.backend=none"
REFUSED = {
    "train.learning_rate": "0.5",
    "train.gradient_accumulation_steps": "7",
    "train.micro_batch_size": "3",
    "train.num_epochs": "9",
    "train.schedule": "linear",
    "train.weight_decay": "0.5",
    "train.packing": "false",
    "data.max_seq_len": "48",
    "data.split_seed": "5",
    "data.num_examples": "50",
    "method.alpha": "4.0",
    "method.dropout": "0.3",
    "seed": "9",
}
HARMLESS = ["train.log_every_steps=1", "train.keep_checkpoints=5", "evaluate.num_samples=1", "generate.temperature=0"]


@pytest.fixture
def prepared(workplace):
    """A run on copies of the tiny model and the examples, prepared and not yet trained."""
    shutil.copytree(ASSETS / "tiny_llama", workplace.folder / "base")
    shutil.copyfile(ASSETS / "examples.jsonl", workplace.folder / "rows.jsonl")
    places = [f"model={workplace.folder / 'base'}", f"data.path={workplace.folder / 'rows.jsonl'}"]
    assert workplace.type("prepare", *SHORT, *places, UNTRACKED) == 0
    return workplace


def test_every_key_that_decides_the_weights_is_refused_by_name(prepared, capsys):
    assert prepared.type("train", "run=latest", *(f"{key}={value}" for key, value in REFUSED.items()), *HARMLESS) == 2
    errors = capsys.readouterr().err
    unnamed = [key for key, value in REFUSED.items() if f"{key}={value}: the run began with" not in errors.lower()]
    assert unnamed == []
    assert not any(change.partition("=")[0] in errors for change in HARMLESS)
    print(f"{len(REFUSED)} keys refused by name")


def test_harmless_keys_may_change(prepared):
    assert prepared.type("train", "run=latest", *HARMLESS) == 0
    assert prepared.newest.final_checkpoint.exists()


def test_other_examples_under_the_same_path_are_refused(prepared, capsys):
    rows = (prepared.folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (prepared.folder / "rows.jsonl").write_text("".join(rows[5:]))
    assert prepared.type("train", "run=latest") == 2
    assert "the examples are others (digest" in capsys.readouterr().err
    assert not prepared.newest.checkpoints.exists()


def test_other_weights_under_the_same_path_are_refused(prepared, capsys):
    file = prepared.folder / "base" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert prepared.type("train", "run=latest") == 2
    assert "has other weights (sha256" in capsys.readouterr().err
    assert not prepared.newest.checkpoints.exists()
