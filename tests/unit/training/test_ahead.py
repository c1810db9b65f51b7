"""A step that is made ahead is the step that would be made in its turn, and what fails on the way fails there."""

import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from llmtune import signals
from llmtune.training import ahead as ahead_module
from llmtune.training import loop
from llmtune.training.ahead import StepBatches, StepsAhead
from llmtune.training.loop import train, train_step
from llmtune.training.parts import TrainState
from llmtune.training.splits import Split, Splits

pytestmark = pytest.mark.fast

SECONDS = 60
"""More than anything here takes; a wait that lasts so long has failed."""


def _threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def _tensors(batches):
    return [
        {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in vars(batch).items()}
        for passes in batches
        for batch in passes
    ]


def _made_here(parts, step, pieces):
    return _tensors(StepBatches(parts, parts.plan.step(step, 0)).passes(pieces))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_what_is_made_ahead_is_what_is_made_in_its_turn(make_parts, packed, pieces):
    parts = make_parts(total_steps=9)
    parts.settings = replace(parts.settings, packed=packed)
    parts.splits.begin(pieces)
    with StepsAhead(parts) as ahead:
        found = [ahead.take(step) for step in range(9)]
        batches = [_tensors(step.passes(pieces)) for step in found]
    for step in range(9):
        assert found[step].planned == parts.plan.step(step, 0)
        assert batches[step] == _made_here(parts, step, pieces)
    assert len({str(step) for step in batches}) == 9, "and no step is another"


def test_a_run_that_goes_on_begins_with_its_own_step(make_parts):
    parts = make_parts()
    with StepsAhead(parts) as ahead:
        ahead.take(0)
        assert _tensors(ahead.take(4).passes(1)) == _made_here(parts, 4, 1)


def test_the_next_step_and_no_other_is_made_while_one_computes(make_parts, monkeypatch):
    parts, made, threads = make_parts(total_steps=4), [], set()
    is_made = {step: threading.Event() for step in range(5)}
    plan, make = parts.plan.step, ahead_module._make

    def planning(step, rank):
        threads.add(threading.current_thread().name)
        made.append(step)
        return plan(step, rank)

    def making(parts, planned, pieces):
        batches = make(parts, planned, pieces)
        is_made[made[-1]].set()
        return batches

    def computing(parts, number, step, compute=loop.fitting_gradients):
        shares = compute(parts, number, step)
        assert number == 3 or is_made[number + 1].wait(SECONDS)
        assert made == list(range(min(number + 2, 4)))
        return shares

    monkeypatch.setattr(parts.plan, "step", planning)
    monkeypatch.setattr(ahead_module, "_make", making)
    monkeypatch.setattr(loop, "fitting_gradients", computing)
    train(parts, TrainState(), [])
    assert made == [0, 1, 2, 3]
    assert len(threads) == 1 and threading.current_thread().name not in threads


def test_losses_and_weights_are_those_of_steps_that_are_made_one_at_a_time(make_parts):
    class Losses(list):
        def on_train_start(self, parts, state): ...

        def on_step_end(self, parts, state, result):
            self.append(result.loss)

        def on_train_end(self, parts, state): ...

    ahead, losses = make_parts(), Losses()
    train(ahead, TrainState(), [losses])
    one_by_one = make_parts()
    assert losses == [train_step(one_by_one, TrainState(global_step=step)).loss for step in range(6)]
    for name, weights in one_by_one.model.state_dict().items():
        assert torch.equal(weights, ahead.model.state_dict()[name])


class Unreadable(Exception):
    """Raised where an example is read."""


@pytest.mark.parametrize("culprit", ["plan", "table"])
def test_what_fails_is_raised_by_the_step_that_it_belongs_to(make_parts, monkeypatch, culprit):
    parts, state = make_parts(), TrainState()
    plan, read, last = parts.plan.step, parts.table.input_ids, parts.plan.step(2, 0).indices[-1]

    def planning(step, rank):
        if culprit == "plan" and step == 2:
            raise Unreadable("the third step")
        return plan(step, rank)

    def reading(index):
        if culprit == "table" and index == last:
            raise Unreadable("the third step")
        return read(index)

    monkeypatch.setattr(parts.plan, "step", planning)
    monkeypatch.setattr(parts.table, "input_ids", reading)
    with pytest.raises(Unreadable, match="the third step"):
        train(parts, state, [])
    assert state.global_step == 2
    assert _threads() == []


def test_memory_that_runs_out_ahead_cuts_the_step_finer(make_parts, monkeypatch):
    parts, make = make_parts(), ahead_module._make
    calls = []

    def making(parts, planned, pieces):
        calls.append(pieces)
        if len(calls) == 3:
            raise MemoryError
        return make(parts, planned, pieces)

    monkeypatch.setattr(ahead_module, "_make", making)
    state = train(parts, TrainState(), [])
    assert state.global_step == 6
    assert parts.splits.all == (Split(1, 1), Split(3, 2))
    assert calls == [1, 1, 1, 1, 2, 2], "the fourth was under way when the third was cut"


def test_a_run_that_goes_on_is_cut_ahead_as_it_was(make_parts, monkeypatch):
    parts, calls, make = make_parts(), [], ahead_module._make
    parts.splits = Splits([Split(1, 1), Split(3, 2)])
    monkeypatch.setattr(ahead_module, "_make", lambda *given: calls.append(given[-1]) or make(*given))
    train(parts, TrainState(), [])
    assert calls == [1, 1, 2, 2, 2, 2]


def test_a_step_that_is_cut_after_it_was_made_is_made_again(make_parts):
    parts = make_parts()
    with StepsAhead(parts) as ahead:
        ahead.take(0)
        parts.splits.add(Split(1, 2))
        step = ahead.take(1)
        assert _tensors(step.passes(2)) == _made_here(parts, 1, 2) != _made_here(parts, 1, 1)


@pytest.mark.parametrize("end", ["last step", "a stop", "an error", "Ctrl-C"])
def test_the_thread_ends_however_training_does(make_parts, end):
    class Ending:
        def on_train_start(self, parts, state): ...

        def on_step_end(self, parts, state, result):
            assert len(_threads()) == 1
            if state.global_step == 2:
                state.should_stop = end == "a stop"
                if end == "an error":
                    raise Unreadable
                if end == "Ctrl-C":
                    raise KeyboardInterrupt

        def on_train_end(self, parts, state): ...

    parts, state = make_parts(), TrainState()
    raised = {"an error": Unreadable, "Ctrl-C": KeyboardInterrupt}.get(end)
    if raised is None:
        train(parts, state, [Ending()])
    else:
        with pytest.raises(raised):
            train(parts, state, [Ending()])
    assert state.global_step == (6 if end == "last step" else 2)
    assert _threads() == []


def test_a_second_signal_waits_for_nothing(make_parts, monkeypatch):
    parts, is_over, plan = make_parts(), threading.Event(), make_parts().plan
    monkeypatch.setattr(signals, "asked_twice", lambda: True)
    monkeypatch.setattr(
        parts.plan, "step", lambda step, rank: (not step or is_over.wait(SECONDS)) and plan.step(step, rank)
    )
    with StepsAhead(parts) as ahead:
        ahead.take(0)
    assert not is_over.is_set() and len(_threads()) == 1, "it is still at the second step"
    is_over.set()
    for thread in _threads():
        thread.join(SECONDS)
    assert _threads() == []


def test_on_a_gpu_all_tensors_lie_in_pinned_memory(make_parts, monkeypatch):
    pinned, parts = [], replace(make_parts(), device=torch.device("cuda", 0))
    chosen = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append((device, threading.current_thread())))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(id(tensor.clone())) or tensor.clone())
    with StepsAhead(parts) as ahead:
        batches = [batch for passes in ahead.take(5).passes(1) for batch in passes]
    tensors = [value for batch in batches for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(pinned) == len(tensors) == 6 * len(batches)
    assert [device for device, _ in chosen] == [3]
    assert chosen[0][1] is not threading.current_thread(), "the thread that pins begins with the first GPU"


def test_a_process_ends_in_the_middle_of_training(tmp_path):
    """Python waits for such threads as it ends; none may wait for something in turn."""
    script = """
import sys, threading
from llmtune.training.ahead import StepsAhead
from types import SimpleNamespace
parts = SimpleNamespace(
    device=SimpleNamespace(type="cpu"), splits=SimpleNamespace(pieces=lambda number: 1),
    settings=SimpleNamespace(schedule=SimpleNamespace(total_steps=9)),
    plan=SimpleNamespace(step=lambda step, rank: SimpleNamespace(micro_batches=())),
)
ahead = StepsAhead(parts).__enter__()
ahead.take(0)
sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=SECONDS, check=False).returncode == 7
