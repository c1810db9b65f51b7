"""What a run decides by itself stands in its record before the first step, and is what it goes on with."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from llmtune.errors import RunError
from llmtune.models import precision
from llmtune.models.attention import VARLEN, VARLEN_KERNEL, attention_of
from llmtune.models.decoding import FAST, OWN
from llmtune.models.fast.decoder import decoder_of
from llmtune.models.token_loss import CHUNKED, WHOLE, choose_loss
from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.seeding import derived_seed
from llmtune.stages import division, training_choices
from llmtune.stages import train as train_stage
from llmtune.training import loss as loss_module
from llmtune.training.loop import train

from .conftest import ASSETS

UNTRACKED = "tracking.backend=none"
STOPPED = "stopped before the first step"
OLD_LOSS = "cross-entropy in fp32 over the supervised positions' logits"
EVERY_CHOICE = {
    "device": "cpu",
    "device_name": "CPU",
    "precision": "fp32",
    "attention": VARLEN,
    "packed": True,
    "loss": CHUNKED,
    "decoder": "llmtune",
    "compile": False,
    "activation_checkpointing": False,
    "activation_checkpointing_reason": None,
    "recomputed": None,
    "micro_batch_split": [{"from_step": 1, "pieces": 1}],
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_processes": 1,
    "num_threads": 1,
    "warmup_steps": 0,
    "total_steps": 8,
    "deterministic": False,
}


OTHER_PARTS = {"micro_batch_size": 2, "gradient_accumulation_steps": 4}


class Begun:
    """A run that is stopped before its first step, as often as it is started; what it would have trained with."""

    def __init__(self, workplace, patch, *words: str) -> None:
        self._workplace = workplace
        patch.setattr(train_stage, "train", self._stopped)
        self.parts, self.threads = None, 0
        assert workplace.train("train", UNTRACKED, *words) == 2

    def _stopped(self, parts, state, callbacks):
        self.parts, self.threads = parts, torch.get_num_threads()
        raise RunError(STOPPED)

    def edit(self, **choices) -> None:
        """Change what is recorded."""
        manifest = json.loads(self._workplace.newest.manifest_file.read_text())
        manifest["choices"] |= choices
        self._workplace.newest.manifest_file.write_text(json.dumps(manifest))

    def forget(self, name: str) -> None:
        """Take a choice out of the record, as an older version left it."""
        manifest = json.loads(self._workplace.newest.manifest_file.read_text())
        del manifest["choices"][name]
        self._workplace.newest.manifest_file.write_text(json.dumps(manifest))

    def again(self, *words: str) -> None:
        """Go on, and be stopped at the same place, or before it."""
        self.parts = None
        assert self._workplace.type("train", "run=latest", *words) == 2


@pytest.fixture
def begin(workplace, monkeypatch):
    """Starts such a run, on a machine without native bf16."""
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    yield lambda *words: Begun(workplace, monkeypatch, *words)
    torch.set_num_threads(1)


def test_every_choice_is_recorded_before_the_first_step(workplace, begin, capsys):
    begun = begin()
    assert STOPPED in capsys.readouterr().err
    assert workplace.manifest.section("choices") == EVERY_CHOICE
    assert not workplace.newest.checkpoints.exists()
    before = workplace.newest.manifest_file.read_text()
    begun.again()
    assert workplace.newest.manifest_file.read_text() == before


def test_control_a_choice_that_is_recorded_later_shows(workplace, begin, monkeypatch):
    for name in ("record_choices", "record_other_division"):
        monkeypatch.setattr(train_stage, name, lambda *given: None)
    begin()
    assert workplace.manifest.section("choices") == {}


def test_every_process_knows_what_was_decided_and_the_first_writes_it(workplace, begin, monkeypatch):
    contexts = []

    def recorded(context, *given, original=train_stage.record_choices):
        contexts.append(context)
        original(context, *given)

    monkeypatch.setattr(train_stage, "record_choices", recorded)
    monkeypatch.setattr(training_choices, "distributed", SimpleNamespace(is_first=lambda: False))
    begin()
    assert contexts[0].manifest.section("choices") == EVERY_CHOICE
    assert workplace.manifest.section("choices") == {}


def test_a_run_goes_on_with_its_threads_on_a_machine_of_other_cores(workplace, begin, monkeypatch, capsys):
    monkeypatch.setattr("llmtune.pipeline.usable_cores", lambda: 2)
    begun = begin("hardware.num_threads=null")
    assert begun.threads == 2
    monkeypatch.setattr("llmtune.pipeline.usable_cores", lambda: 1)
    capsys.readouterr()
    begun.again()
    assert begun.threads == 2
    assert "num_threads: the run began with 2, and there are 1 cores" in " ".join(capsys.readouterr().out.split())
    begun.edit(num_threads=1)
    monkeypatch.setattr("llmtune.pipeline.usable_cores", lambda: 2)
    begun.again()
    assert begun.threads == 1


def test_other_threads_are_refused_by_key(begin, monkeypatch, capsys):
    monkeypatch.setattr("llmtune.pipeline.usable_cores", lambda: 2)
    begun = begin("hardware.num_threads=null")
    for words in (["hardware.num_threads=1"], ["hardware.num_threads=1", "resume_allow=[hardware.num_threads]"]):
        capsys.readouterr()
        begun.again(*words)
        assert begun.parts is None
        errors = " ".join(capsys.readouterr().err.split())
        assert "hardware.num_threads=1: the run began with 2 CPU threads a process" in errors
        assert "leave it out, or start a new run without run=" in errors
    assert "resume_allow: hardware.num_threads can't change where a run goes on" in errors
    begun.edit(num_processes=2, gradient_accumulation_steps=1)
    begun.again("hardware.num_threads=1")
    assert (begun.parts is None, begun.threads) == (False, 1), "in another number of processes they are shared out anew"


@pytest.mark.parametrize(
    "typed",
    [
        "num_threads=2",
        *(pytest.param(key, marks=pytest.mark.slow) for key in ("num_threads=null", "kind=auto")),
        "peer_timeout_seconds=60",
    ],
)
def test_hardware_that_leaves_the_threads_may_change(begin, monkeypatch, typed):
    monkeypatch.setattr("llmtune.pipeline.usable_cores", lambda: 2)
    begun = begin("hardware.num_threads=null", "hardware=cpu")
    begun.again(f"hardware.{typed}")
    assert (begun.parts is None, begun.threads) == (False, 2)


def test_steps_that_cannot_be_divided_are_refused_by_key(begin, monkeypatch, capsys):
    begun = begin()
    monkeypatch.setattr(division, "distributed", SimpleNamespace(num_processes=lambda: 3))
    capsys.readouterr()
    begun.again()
    assert begun.parts is None
    errors = " ".join(capsys.readouterr().err.split())
    assert "hardware.num_processes=3: the run began with 1; its 8 examples a step" in errors
    assert "only by 1, 2, 4, 8" in errors


def test_micro_batches_may_become_others_in_whatever_number_of_processes(workplace, begin, monkeypatch, capsys):
    begun = begin()
    allow = "resume_allow=[train.micro_batch_size,train.gradient_accumulation_steps]"
    begun.again("train.micro_batch_size=2", "train.gradient_accumulation_steps=4", allow)
    assert division.division(begun.parts.plan.settings) == {**OTHER_PARTS, "num_processes": 1}
    assert "micro-batches: a step keeps its 8 examples: micro-batch 2 x" in " ".join(capsys.readouterr().out.split())
    before = workplace.newest.manifest_file.read_text()
    begun.again()
    assert workplace.newest.manifest_file.read_text() == before
    monkeypatch.setattr(division, "distributed", SimpleNamespace(num_processes=lambda: 2, is_first=lambda: True))
    begun.again("train.micro_batch_size=1", "train.gradient_accumulation_steps=8", allow)
    last = {"micro_batch_size": 1, "gradient_accumulation_steps": 4, "num_processes": 2}
    assert division.division(begun.parts.plan.settings) == last
    (recorded,) = workplace.manifest.section("choices")["divisions"]
    assert recorded == {"step": 1, **last, "num_threads": 1}, "no step was made with the others"


def test_steps_of_tokens_go_on_in_whatever_number_of_processes(workplace, begin, monkeypatch, capsys):
    begun = begin("train.batch_unit=tokens", "train.tokens_per_step=640")
    first = [begun.parts.plan.step(step, 0) for step in range(5)]
    choices = workplace.manifest.section("choices")
    assert (choices["micro_batch_size"], choices["num_processes"]) == (4, 1)
    assert "gradient_accumulation_steps" not in choices
    capsys.readouterr()
    monkeypatch.setattr(division, "distributed", SimpleNamespace(num_processes=lambda: 3, is_first=lambda: True))
    begun.again("train.micro_batch_size=2", "resume_allow=[train.micro_batch_size]")
    said = " ".join(capsys.readouterr().out.split())
    assert "a step keeps its examples: micro-batches of at most 128 tokens, processes 3" in said
    assert [begun.parts.plan.step(step, 0).indices for step in range(5)] == [step.indices for step in first]
    (recorded,) = workplace.manifest.section("choices")["divisions"]
    assert recorded == {"step": 1, "micro_batch_size": 2, "num_processes": 3, "num_threads": 1}


def test_a_run_goes_on_in_its_precision_or_not_at_all(begin, monkeypatch, capsys):
    begun = begin()
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    begun.again()
    assert begun.parts.precision.name == "fp32", "not what would be chosen now"
    begun = begin()
    assert begun.parts.precision.name == "bf16"
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    capsys.readouterr()
    begun.again()
    errors = capsys.readouterr().err
    assert begun.parts is None
    assert "precision: the run began with bf16, and here it would be fp32 (this CPU has no native bf16); go on on" in (
        errors
    )


@pytest.mark.parametrize(
    ("recorded", "name"), [(CHUNKED, CHUNKED), (WHOLE, WHOLE), (OLD_LOSS, WHOLE)], ids=["chunked", "whole", "older"]
)
def test_a_run_goes_on_with_its_loss(begin, recorded, name):
    begun = begin()
    begun.edit(loss=recorded)
    begun.again()
    assert choose_loss(begun.parts.model).name == name


@pytest.mark.parametrize(
    ("recorded", "packed"), [(VARLEN, True), ("sdpa", False), ("eager", False)], ids=["packed", "sdpa", "eager"]
)
def test_a_run_goes_on_with_its_attention(begin, recorded, packed):
    begun = begin()
    begun.edit(attention=recorded, packed=packed, decoder="llmtune" if packed else "transformers")
    begun.again()
    assert attention_of(begun.parts.model) == recorded
    assert begun.parts.settings.packed == packed


def test_a_run_goes_on_with_what_was_done_about_short_memory(begin, capsys):
    begun = begin()
    begun.edit(
        activation_checkpointing=True,
        activation_checkpointing_reason="a single example takes too much",
        micro_batch_split=[{"from_step": 1, "pieces": 2}, {"from_step": 5, "pieces": 4}],
    )
    capsys.readouterr()
    begun.again()
    assert [begun.parts.splits.pieces(number) for number in (1, 4, 5)] == [2, 2, 4]
    decoder = decoder_of(begun.parts.model)
    assert decoder is not None and decoder.recompute == "blocks"
    shown = " ".join(capsys.readouterr().out.split())
    assert "cut into 4 pieces from step 5 on" in shown and "computed again in the backward pass (a single" in shown
    begun.forget("micro_batch_split")
    begun.again()
    assert begun.parts.splits.pieces(9) == 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"attention": VARLEN_KERNEL},
            f"attention: the run began with '{VARLEN_KERNEL}' on packed rows, and here cpu has no such kernel; go on",
        ),
        ({"attention": "nothing", "packed": False}, "attention: the run began with 'nothing' on padded rows, and here"),
        ({"loss": "by guessing"}, "loss: the run began with 'by guessing', and here"),
        ({"precision": "fp16"}, "precision: the run began with fp16, and here it would be fp32"),
        ({"total_steps": 99}, "the run began with total_steps 99 (here 8)"),
    ],
)
def test_what_cannot_be_had_here_is_refused_by_name(begin, capsys, edit, message):
    begun = begin()
    begun.edit(**edit)
    capsys.readouterr()
    begun.again()
    assert begun.parts is None
    errors = capsys.readouterr().err
    assert message in errors
    assert "or start a new run" in errors


def test_another_device_is_told(begin, capsys):
    begun = begin()
    begun.edit(device="cuda:0")
    begun.again()
    assert begun.parts is not None
    assert "device: the run began on cuda and goes on on cpu" in " ".join(capsys.readouterr().out.split())


def test_a_run_is_evaluated_with_the_loss_and_attention_it_trained_with(workplace, begin, monkeypatch):
    begun = begin()
    begun.edit(loss=WHOLE, attention="eager", packed=False)
    monkeypatch.setattr(train_stage, "train", train)
    seen = []

    def evaluated(model, table, settings, original=train_stage.evaluate_loss):
        seen.append((choose_loss(model).name, attention_of(model), settings.packed))
        return original(model, table, settings)

    monkeypatch.setattr("llmtune.stages.measuring.evaluate_loss", evaluated)
    assert workplace.type("evaluate", "run=latest") == 0
    assert seen == [(WHOLE, "eager", False)] * 2
    begun.edit(attention=VARLEN_KERNEL, packed=True)
    manifest = json.loads(workplace.newest.manifest_file.read_text())
    del manifest["stages"]["evaluate"]
    workplace.newest.manifest_file.write_text(json.dumps(manifest))
    assert workplace.type("evaluate", "run=latest") == 0
    assert seen[2:] == [(WHOLE, VARLEN, True)] * 2, "where it can't be had, what is right"


def test_a_run_of_its_own_evaluates_as_the_weights_were_trained_unless_other_choices_are_typed(
    workplace, begin, monkeypatch, capsys
):
    begun = begin()
    begun.edit(loss=WHOLE, attention="eager", packed=False, decoder=OWN)
    monkeypatch.setattr(train_stage, "train", train)
    assert workplace.type("train", "run=latest") == 0
    trained = workplace.newest.path
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    rows = f"data.eval_path={ASSETS / 'examples.jsonl'}"

    def evaluated(*words: str) -> dict[str, str]:
        assert workplace.type("evaluate", f"run={trained}", rows, *words) == 0
        assert workplace.newest.path != trained
        return workplace.manifest.stage("evaluate")["computed_with"]

    assert evaluated() == {"precision": "fp32", "attention": "eager", "loss": WHOLE, "decoder": OWN}
    by_chunks = {"attention": VARLEN, "loss": CHUNKED, "decoder": FAST}
    assert evaluated("train.precision=bf16") == {"precision": "bf16", **by_chunks}
    (trained / "manifest.json").write_text((trained / "manifest.json").read_text().replace('"fp32"', '"bf16"'))
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    assert evaluated()["precision"] == "fp32", "where it can't be had, what is right"
    assert "precision: fp32, not bf16 as in training: this CPU has no" in " ".join(capsys.readouterr().out.split())


def _short_at(monkeypatch, global_step: int, limit: int) -> None:
    """Let passes of more than `limit` positions run out of memory in one step."""

    def short(model, batch, divisor, original=loss_module.micro_batch_loss):
        if torch.initial_seed() == derived_seed(1, "step", global_step, 0) and batch.input_ids.numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch, divisor)

    monkeypatch.setattr(loss_module, "micro_batch_loss", short)


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "control: forgotten"])
def test_a_split_is_recorded_with_its_step_and_made_again_there(workplace, monkeypatch, recorded):
    words = ["train", UNTRACKED, "train.checkpoint_every_steps=1", "train.keep_checkpoints=20"]
    with monkeypatch.context() as patch:
        _short_at(patch, 4, 60)
        assert workplace.train(*words) == 0
    run = workplace.newest
    splits = workplace.manifest.section("choices")["micro_batch_split"]
    assert splits[:2] == [{"from_step": 1, "pieces": 1}, {"from_step": 5, "pieces": 2}]
    weights, losses = _results(run)
    _forget_after(run, step=2, keep_splits=recorded)
    assert workplace.type("train", f"run={run.path}") == 0
    assert (_results(run)[0] == weights) == recorded
    assert (_results(run)[1] == losses) == recorded


def test_memory_that_does_not_suffice_for_one_example_says_what_is_left(workplace, monkeypatch, capsys):
    _short_at(monkeypatch, 2, 1)
    assert workplace.train("train", UNTRACKED, "train.checkpoint_every_steps=1") == 1
    errors = capsys.readouterr().err
    assert "is out of memory, with a single example a pass" in errors
    assert "train.micro_batch_size" not in errors and "train.activation_checkpointing=true" in errors
    assert (workplace.newest.checkpoints / "checkpoint-2").exists()


def _results(run: RunFolder):
    weights = (run.final_checkpoint / "adapter_model.safetensors").read_bytes()
    return weights, MetricsLog(run.metrics_file).losses("train/loss")


def _forget_after(run: RunFolder, step: int, *, keep_splits: bool) -> None:
    """Make the run look as if it was killed after `step`."""
    for checkpoint in run.checkpoints.iterdir():
        if checkpoint.is_symlink():
            checkpoint.unlink()
        elif int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    manifest = json.loads(run.manifest_file.read_text())
    del manifest["stages"]["train"]
    if not keep_splits:
        del manifest["choices"]["micro_batch_split"][1:]
    run.manifest_file.write_text(json.dumps(manifest))
