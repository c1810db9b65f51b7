"""Where memory is short a step is made in smaller passes, and stays the same step; what is tried leaves no trace."""

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from short_memory import ShortMemory
from tiny_training import FULL, LORA, LORA_DROPOUT, Outcome, Setup, make_parts, train_to_the_end, weights_digest

from llmtune.models.token_loss import CHUNKED, WHOLE, choose_loss, set_loss
from llmtune.training import fitting
from llmtune.training import loss as loss_module
from llmtune.training.checkpoint import load_checkpoint
from llmtune.training.fitting import ExampleTooLarge, fit_memory
from llmtune.training.loop import train, train_step
from llmtune.training.parts import TrainState
from llmtune.training.splits import Split, Splits

METHODS = pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
LOSSES = pytest.mark.parametrize("name", [WHOLE, CHUNKED], ids=["whole", "chunked"])
WIDE = Setup(micro_batch_size=4, gradient_accumulation_steps=2)
DROPPING = replace(WIDE, method=LORA_DROPOUT, num_examples=40)
FAILED_STEP = 5
WORKER = Path(__file__).parent / "short_of_memory_worker.py"


class FirstStep(NamedTuple):
    loss: float
    grad_norm: float


def _first_step(model_folder, setup, name, pieces, dtype=torch.float32):
    parts = make_parts(model_folder, setup)
    parts.model.to(dtype)
    for module in parts.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    set_loss(parts.model, name)
    parts.splits = Splits([Split(1, pieces)])
    memory = ShortMemory(parts.model, None)
    result = train_step(parts, TrainState())
    return FirstStep(float(result.loss), float(result.grad_norm)), memory.passes


@pytest.mark.fast
@METHODS
@PACKED
@LOSSES
@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_a_split_step_is_the_same_step(tiny_model, method, packed, name, pieces):
    setup = replace(WIDE, method=method, packed=packed)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        whole, passes = _first_step(tiny_model, setup, name, 1, dtype)
        split, split_passes = _first_step(tiny_model, setup, name, pieces, dtype)
        assert split == pytest.approx(whole, rel=tolerance)
        assert len(passes) < len(split_passes) <= pieces * len(passes) and max(split_passes) < max(passes)
    assert whole.grad_norm > 1e-3


@pytest.mark.fast
def test_control_a_divisor_of_the_pass_instead_of_the_step_shows(tiny_llama, monkeypatch):
    whole, _ = _first_step(tiny_llama, WIDE, WHOLE, 1)

    def broken(model, batch, divisor, original=loss_module.micro_batch_loss):
        return original(model, batch, 4 * max(1, len(batch.targets)))

    monkeypatch.setattr(loss_module, "micro_batch_loss", broken)
    split, _ = _first_step(tiny_llama, WIDE, WHOLE, 2)
    assert abs(split.loss / whole.loss - 1) > 1e-4
    assert abs(split.grad_norm / whole.grad_norm - 1) > 1e-4


class Shortage:
    """A callback: from one step on, passes of more than `limit` positions fail."""

    def __init__(self, memory: ShortMemory, limit: int) -> None:
        self._memory, self._limit = memory, limit

    def on_train_start(self, parts, state): ...

    def on_step_end(self, parts, state, result):
        if state.global_step == FAILED_STEP - 1:
            self._memory.limit = self._limit

    def on_train_end(self, parts, state): ...


def _disturbed(model_folder, setup, folder, *, backward=False) -> tuple[Outcome, Splits]:
    """A run that is short of memory from its fifth step on."""
    parts = make_parts(model_folder, setup)
    memory = ShortMemory(parts.model, None, backward=backward)
    outcome = train_to_the_end(parts, TrainState(), folder, more=[Shortage(memory, 60)])
    return outcome, parts.splits


def _goes_on(model_folder, setup, start, splits, folder) -> Outcome:
    """Go on from a checkpoint with more memory, and with what is recorded of the splits."""
    parts = make_parts(model_folder, setup)
    parts.splits = splits
    return train_to_the_end(parts, load_checkpoint(start, parts), folder)


@pytest.mark.fast
@PACKED
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_step_that_runs_out_of_memory_is_made_again_in_smaller_passes(tiny_llama, tmp_path, packed, backward):
    setup = replace(WIDE, packed=packed, num_examples=40, learning_rate=1e-3)
    undisturbed = train_to_the_end(make_parts(tiny_llama, setup), TrainState(), tmp_path / "undisturbed")
    disturbed, splits = _disturbed(tiny_llama, setup, tmp_path / "disturbed", backward=backward)
    assert splits.all[:2] == (Split(1, 1), Split(FAILED_STEP, 2))
    for step, (loss, grad_norm) in undisturbed.steps.items():
        tolerance = 1e-5 if step > FAILED_STEP else 1e-6
        assert disturbed.steps[step][0] == pytest.approx(loss, rel=tolerance)
        assert disturbed.steps[step][1] == pytest.approx(grad_norm, rel=10 * tolerance)
        assert step >= FAILED_STEP or disturbed.steps[step] == (loss, grad_norm)


@pytest.mark.fast
def test_a_run_that_was_split_goes_on_to_the_same_bits_from_every_checkpoint(tiny_llama, tmp_path):
    disturbed, splits = _disturbed(tiny_llama, DROPPING, tmp_path / "disturbed")
    for step in (1, FAILED_STEP - 1, FAILED_STEP, FAILED_STEP + 2):
        start = tmp_path / "disturbed" / "checkpoints" / f"checkpoint-{step}"
        resumed = _goes_on(tiny_llama, DROPPING, start, Splits(splits.all), tmp_path / "resumed")
        expected = disturbed.after(step)
        assert (resumed.weights, resumed.state, resumed.steps) == (expected.weights, expected.state, expected.steps)


@pytest.mark.fast
@pytest.mark.parametrize("forgotten", [Splits(), Splits([Split(1, 2)])], ids=["never split", "split from the start"])
def test_control_a_forgotten_split_shows(tiny_llama, tmp_path, forgotten):
    disturbed, _ = _disturbed(tiny_llama, DROPPING, tmp_path / "disturbed")
    start = tmp_path / "disturbed" / "checkpoints" / "checkpoint-1"
    assert _goes_on(tiny_llama, DROPPING, start, forgotten, tmp_path / "resumed").weights != disturbed.weights


@pytest.mark.fast
def test_control_what_a_failed_pass_left_shows(tiny_llama, tmp_path, monkeypatch):
    setup = replace(WIDE, num_examples=40)
    clean, _ = _disturbed(tiny_llama, setup, tmp_path / "clean", backward=True)
    monkeypatch.setattr(fitting, "release", lambda parts: None)
    unclean, _ = _disturbed(tiny_llama, setup, tmp_path / "unclean", backward=True)
    assert unclean.steps[FAILED_STEP][1] != pytest.approx(clean.steps[FAILED_STEP][1], rel=1e-3)


@pytest.mark.fast
def test_a_single_example_that_does_not_fit_ends_the_run_with_the_weights_of_the_step_before(tiny_llama):
    parts, state = make_parts(tiny_llama, replace(WIDE, num_examples=40)), TrainState()
    memory = ShortMemory(parts.model, None)
    with pytest.raises(ExampleTooLarge, match="a single example a pass") as error:
        train(parts, state, [Shortage(memory, 3)])
    assert isinstance(error.value.__cause__, torch.OutOfMemoryError)
    assert state.global_step == FAILED_STEP - 1
    reference, until = make_parts(tiny_llama, replace(WIDE, num_examples=40)), TrainState()
    while until.global_step < state.global_step:
        train_step(reference, until).read()
        until.global_step += 1
    assert weights_digest(parts.model) == weights_digest(reference.model)


def _broken(*given, **named):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.fast
def test_another_error_and_one_inside_the_update_are_not_repeated(tiny_llama, monkeypatch):
    parts = make_parts(tiny_llama, WIDE)
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="mat1 and mat2"):
        broken.setattr(loss_module, "token_loss_sum", _broken)
        train_step(parts, TrainState())

    def update(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("llmtune.training.loop.update_weights", update)
    with pytest.raises(torch.OutOfMemoryError):
        train_step(parts, TrainState())
    assert parts.splits.all == (Split(1, 1),)


def _fit(model_folder, setup, limit, *, recomputing=None, already=None):
    parts = make_parts(model_folder, setup)
    memory = ShortMemory(parts.model, limit, recomputing=recomputing)
    on = fit_memory(parts, 1e6, already)
    return parts.splits.all, on, memory, parts


@PACKED
def test_the_largest_micro_batch_of_the_whole_plan_is_tried_and_cut_until_it_fits(tiny_llama, packed):
    setup = replace(WIDE, packed=packed, num_examples=40)
    splits, on, memory, parts = _fit(tiny_llama, setup, None)
    assert (splits, on) == ((Split(1, 1),), None)
    largest, longest, sizes = memory.passes[-1], int(parts.table.num_tokens.max()), []
    for limit in (longest, 60, largest - 1):
        (split,), on, memory, parts = _fit(tiny_llama, setup, limit)
        assert on is None and split.from_step == 1
        sizes.append(split.pieces)
        memory.passes.clear()
        train(parts, TrainState(), [])
        assert max(memory.passes) <= limit, "what was tried is the largest pass of the run"
        assert parts.splits.all == (split,), "nothing was left to find out later"
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] == 2


def test_activation_checkpointing_comes_after_single_examples_and_then_the_error(tiny_llama):
    setup = replace(WIDE, num_examples=40)
    splits, on, memory, parts = _fit(tiny_llama, setup, 39, recomputing=100)
    assert on == "blocks" and memory.passes[-1] <= 100 and splits == (Split(1, 2),)
    assert weights_digest(parts.model) == weights_digest(make_parts(tiny_llama, setup).model)
    for limits in ({"recomputing": 39}, {"already": "blocks"}):
        with pytest.raises(ExampleTooLarge) as error:
            _fit(tiny_llama, setup, 39, **limits)
        assert error.value.recomputing


def _traces(parts):
    return (
        torch.get_rng_state().tolist(),
        [parameter.grad is None for parameter in parts.model.parameters()],
        weights_digest(parts.model),
        parts.model.training,
        parts.optimizer.state_dict()["state"],
    )


@pytest.mark.fast
@pytest.mark.parametrize("training", [True, False])
def test_what_is_tried_leaves_no_trace(tiny_model, training):
    parts = make_parts(tiny_model, DROPPING)
    parts.model.train(training)
    before = _traces(parts)
    assert choose_loss(parts.model).name == CHUNKED
    assert _traces(parts) == before
    ShortMemory(parts.model, 60)
    fit_memory(parts, 1e6, None)
    assert parts.splits.all[0].pieces > 1
    assert _traces(parts) == before


@pytest.mark.fast
def test_control_random_numbers_that_were_drawn_show(tiny_llama, monkeypatch):
    parts = make_parts(tiny_llama, DROPPING)
    before = _traces(parts)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    fit_memory(parts, 0.0, None)
    assert _traces(parts)[0] != before[0]
    assert _traces(parts)[1:] == before[1:]


@pytest.mark.fast
def test_control_gradients_that_were_left_show(tiny_llama, monkeypatch):
    parts = make_parts(tiny_llama, DROPPING)
    before = _traces(parts)
    monkeypatch.setattr(fitting, "release", lambda parts: None)
    fit_memory(parts, 0.0, None)
    assert _traces(parts)[1] != before[1]


@pytest.mark.fast
def test_a_run_does_not_depend_on_whether_memory_was_tried(tiny_llama, tmp_path):
    untried = train_to_the_end(make_parts(tiny_llama, DROPPING), TrainState(), tmp_path / "untried")
    parts = make_parts(tiny_llama, DROPPING)
    fit_memory(parts, 1e6, None)
    parts.table.taken.clear()
    assert train_to_the_end(parts, TrainState(), tmp_path / "tried") == untried


def _work(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    path = os.pathsep.join(path for path in sys.path if path)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **(environment or {})}
    command = [sys.executable, str(WORKER), *arguments]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_machine_that_is_really_short_of_memory(tiny_llama):
    """The kernel refuses the process more address space; the allocator's own error is what is met."""
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed returns to the kernel at once
    worker = _work("limited", str(tiny_llama), environment=given_back)
    shown, errors = worker.communicate(timeout=150)
    assert worker.returncode == 0, errors
    print(shown)
    assert "the machine is out of memory; from this step on" in " ".join(shown.split())
    assert shown.splitlines()[-1].endswith("pieces: equal")


@pytest.mark.slow
def test_several_processes_take_the_finest_and_repeat_nothing(tiny_llama, tmp_path):
    arguments = ("agreeing", str(tiny_llama), str(tmp_path / "meeting"))
    workers = [_work(*arguments, environment={"RANK": rank, "WORLD_SIZE": "2"}) for rank in ("0", "1")]
    shown = [worker.communicate(timeout=150) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], shown
    told = [output.splitlines()[-1] for output, _ in shown]
    assert told == ["fits in 4; too large everywhere; not repeated"] * 2
