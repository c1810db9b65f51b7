"""Going on with other data, weights or choices than a run began with is refused by key; what is harmless may change."""

import json
import shutil

import pytest

from llmtune.config.resume_allow import ALLOWABLE, never_because
from llmtune.config.saved import load_config
from llmtune.config.schema import keys
from llmtune.continuation import _HARMLESS
from llmtune.runs.metrics_log import MetricsLog
from llmtune.training.checkpoint import list_checkpoints

from .conftest import ASSETS, SHORT

UNTRACKED = "tracking.backend=none"
REFUSED = {
    "train.learning_rate": "0.5",
    "train.gradient_accumulation_steps": "7",
    "train.micro_batch_size": "3",
    "train.batch_unit": "tokens",
    "train.tokens_per_step": "640",
    "train.num_epochs": "9",
    "train.max_steps": "5",
    "train.warmup_steps": "3",
    "train.schedule": "linear",
    "train.optimizer": "sgd",
    "train.weight_decay": "0.5",
    "train.max_grad_norm": "0.5",
    "train.validate_every_steps": "2",
    "train.early_stopping_patience": "1",
    "train.packing": "false",
    "train.precision": "bf16",
    "train.deterministic": "true",
    "train.master_dtype": "bf16",
    "train.activation_checkpointing": "true",
    "data.max_seq_len": "48",
    "data.split_seed": "5",
    "data.num_examples": "50",
    "data.validation_fraction": "0.2",
    "data.test_fraction": "0.2",
    "model.attention": "eager",
    "method.rank": "4",
    "method.alpha": "4.0",
    "method.dropout": "0.3",
    "seed": "9",
}
HARMLESS = [
    *("train.log_every_steps=7", "train.keep_checkpoints=5", "train.checkpoint_every_steps=3"),
    *("evaluate.num_samples=1", "generate.temperature=0", "tracking.experiment=other", "export.overwrite=true"),
    *("data.num_workers=0", "data.write_clean=clean.jsonl"),
]


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
    assert (prepared.folder / "clean.jsonl").exists()
    assert prepared.newest.final_checkpoint.exists()


def test_other_examples_under_the_same_path_are_refused(prepared, capsys):
    rows = (prepared.folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (prepared.folder / "rows.jsonl").write_text("".join(rows[5:]))
    assert prepared.type("train", "run=latest") == 2
    assert "the examples are others (digest" in capsys.readouterr().err
    assert not prepared.newest.checkpoints.exists()


def test_data_of_an_older_version_say_that_and_what_to_do(prepared, capsys):
    file = prepared.newest.manifest_file
    manifest = json.loads(file.read_text())
    manifest["data"] = {"digest": "0" * 64, "splits": manifest["data"]["splits"]}
    file.write_text(json.dumps(manifest))
    assert prepared.type("train", "run=latest") == 2
    errors = capsys.readouterr().err
    assert "was prepared by an older llmtune" in errors and "go on with that version, or start a new run" in errors
    assert "restore the files" not in errors


def test_other_weights_under_the_same_path_are_refused(prepared, capsys):
    file = prepared.folder / "base" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert prepared.type("train", "run=latest") == 2
    assert "has other weights (sha256" in capsys.readouterr().err
    assert not prepared.newest.checkpoints.exists()


def _resume(prepared, *words):
    return prepared.type("train", "run=latest", *words)


@pytest.fixture
def half_way(prepared):
    """A run of one epoch that was stopped after 4 of its 8 steps: its later checkpoints and what it made are gone."""
    assert _resume(prepared, "train.checkpoint_every_steps=2", "train.keep_checkpoints=9") == 0
    run = prepared.newest
    for step in (5, 6, 7, 8):
        shutil.rmtree(run.checkpoint(step), ignore_errors=True)
    run.final_checkpoint.unlink()
    run.best_checkpoint.unlink()
    prepared.manifest.allow_changes({}, ["train"])
    assert list_checkpoints(run.checkpoints)[-1].name == "checkpoint-4"
    return prepared


def test_a_named_key_may_change_and_is_recorded_with_its_step(half_way, capsys):
    assert _resume(half_way, "train.num_epochs=3") == 2
    assert (
        "train.num_epochs=3: the run began with 1; leave it as it was, allow it with resume_allow=[train.num_epochs]"
        in (capsys.readouterr().err)
    )
    before = half_way.manifest.section("choices")
    assert _resume(half_way, "train.num_epochs=3", "resume_allow=[train.num_epochs]") == 0
    manifest, run = half_way.manifest, half_way.newest
    assert manifest.changes == {"train.num_epochs": [{"before": 1, "after": 3, "step": 4}]}
    assert (before["total_steps"], before["warmup_steps"]) == (8, 0)
    after = manifest.section("choices")
    assert (after["total_steps"], after["warmup_steps"]) == (24, 2)
    assert {**before, **{name: after[name] for name in ("total_steps", "warmup_steps")}} == after
    config = load_config(run.config_file)
    assert (config.train.num_epochs, config.resume_allow) == (3, ())
    assert manifest.stage("train")["steps"] == 24
    assert [step for step, _ in MetricsLog(run.metrics_file).losses("train/loss")] == list(range(1, 25))
    assert run.final_checkpoint.readlink().name == "checkpoint-24"


def test_what_was_allowed_once_is_refused_again_without_a_name(half_way, capsys):
    words = ("train.num_epochs=2", "resume_allow=[train.num_epochs]")
    assert _resume(half_way, *words) == 0
    assert _resume(half_way) == 0
    assert "train: finished earlier" in capsys.readouterr().out
    assert _resume(half_way, "train.num_epochs=3") == 2


def test_a_finished_run_may_go_on_with_more_epochs(prepared):
    assert _resume(prepared) == 0
    earlier = prepared.manifest.stage("train")
    assert _resume(prepared, "train.num_epochs=2", "seed=5", "resume_allow=[train.num_epochs,seed]") == 0
    assert prepared.manifest.section("earlier_stages") == [{"train": earlier}]
    assert prepared.manifest.stage("train")["steps"] == 16
    assert [entry["step"] for entries in prepared.manifest.changes.values() for entry in entries] == [8, 8]


@pytest.mark.parametrize("changed", [("train.micro_batch_size=2", "train.gradient_accumulation_steps=4")])
def test_a_step_may_be_cut_otherwise_but_holds_as_many_examples(half_way, capsys, changed):
    allow = "resume_allow=[train.micro_batch_size,train.gradient_accumulation_steps]"
    assert _resume(half_way, changed[0], allow) == 2
    assert "a step would hold 4 examples instead of 8" in capsys.readouterr().err
    assert half_way.manifest.changes == {}
    assert _resume(half_way, *changed, allow) == 0
    assert half_way.manifest.stage("train")["steps"] == 8
    divisions = half_way.manifest.section("choices")["divisions"]
    assert [(entry["step"], entry["micro_batch_size"]) for entry in divisions] == [(1, 4), (5, 2)]


def test_fewer_steps_than_are_done_are_refused_and_lose_nothing(half_way, capsys):
    allow = "resume_allow=[train.max_steps]"
    before = half_way.manifest.section("choices")
    assert _resume(half_way, "train.max_steps=3", allow) == 2
    assert "the run would have 3 steps, and 4 are done" in capsys.readouterr().err
    assert (half_way.manifest.section("choices"), half_way.manifest.changes) == (before, {})
    assert _resume(half_way, "train.max_steps=null", allow) == 0
    assert (half_way.manifest.stage("train")["steps"], half_way.manifest.changes) == (8, {})


NEVER = {
    "method.rank=4": "the checkpoint's weights belong to that method",
    "model.name=other": "trained on that base model",
    "train.optimizer=sgd": "holds that optimizer's state",
    "data.num_examples=50": "start a new run from its weights",
    "train.precision=bf16": "restored from its manifest",
    "train.tokens_per_step=640": "place is counted in its steps",
    "train.batch_unit=tokens": "place is counted in its steps",
    "train.master_dtype=bf16": "holds weights and optimizer state of that type",
}


def test_what_makes_the_checkpoint_not_fit_is_refused_even_when_named(prepared, capsys):
    names = ",".join(change.partition("=")[0] for change in NEVER)
    assert _resume(prepared, *NEVER, f"resume_allow=[{names}]") == 2
    errors = capsys.readouterr().err
    for change, reason in NEVER.items():
        line = next(line for line in errors.splitlines() if f"resume_allow: {change.partition('=')[0]} can't" in line)
        assert reason in line
    assert prepared.manifest.changes == {}


def test_a_mistyped_name_is_told_with_the_nearest(prepared, capsys):
    assert _resume(prepared, "train.num_epochs=2", "resume_allow=[train.num_epoch]") == 2
    errors = capsys.readouterr().err
    assert "resume_allow: there is no key train.num_epoch. Did you mean train.num_epochs?" in errors
    assert "train.num_epochs=2: the run began with 1" in errors


@pytest.mark.parametrize("words", [["evaluate", "run=latest"], ["train"], ["-m", "train", "seed=1,2"]])
def test_resume_allow_is_refused_where_no_training_goes_on(prepared, capsys, words):
    more = [] if "run=latest" in words else [f"data.path={prepared.folder / 'rows.jsonl'}"]
    assert prepared.type(*words, *more, "resume_allow=[seed]") == 2
    assert "resume_allow: belongs to train run=RUN" in capsys.readouterr().err


@pytest.mark.fast
def test_every_key_is_harmless_or_may_be_allowed_or_has_a_reason():
    names = {key.name for key in keys()}
    classes = {
        "harmless": {name for name in names if name.startswith(_HARMLESS)},
        "allowable": set(ALLOWABLE),
        "never": {name for name in names if never_because(name) is not None},
    }
    assert names >= ALLOWABLE
    unclassified = names - set.union(*classes.values())
    assert unclassified == set()
    assert classes["harmless"] & classes["allowable"] == set()
    print(f"{len(names)} keys: " + ", ".join(f"{len(found)} {name}" for name, found in classes.items()))
