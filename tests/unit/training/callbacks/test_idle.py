"""Steps too small for a device are told from when it had run out of work, and the key to raise is named."""

from dataclasses import replace

import pytest
import torch

from llmtune.data.plan import StepPlan
from llmtune.training import loop
from llmtune.training.callbacks import idle
from llmtune.training.callbacks.idle import IdleCallback
from llmtune.training.end_of_work import end_of_work
from llmtune.training.faults import read_steps
from llmtune.training.loop import train
from llmtune.training.optimizer import make_optimizer
from llmtune.training.parts import TrainState
from llmtune.training.splits import Split

pytestmark = pytest.mark.fast

WARM_UP = 2


class Device:
    """Stands for a GPU, and is the callback that puts it in place: by its nth look it has run dry or not."""

    def __init__(self, looks):
        self.calls = []
        self._looks = iter(looks)

    def mark(self):
        self.calls.append("mark")

    def is_reached(self):
        self.calls.append("look")
        return next(self._looks)

    def on_train_start(self, parts, state):
        assert parts.watch.end_of_work is None, "this is a CPU"
        parts.watch.end_of_work = self

    def on_step_end(self, parts, state, result): ...

    def on_train_end(self, parts, state): ...


@pytest.fixture
def told(monkeypatch):
    """What was warned of."""
    said = []
    monkeypatch.setattr(idle, "warn", said.append)
    return said


def _train(make_parts, looks, num_steps, prepare=lambda parts: None, before=()):
    parts, device = make_parts(total_steps=num_steps), Device(looks)
    prepare(parts)
    train(parts, TrainState(), [device, *before, IdleCallback()])
    return device.calls


@pytest.mark.parametrize(("num_idle", "is_told"), [(10, False), (11, True), (20, True)])
def test_it_is_told_where_most_of_twenty_steps_found_the_device_idle(make_parts, told, num_idle, is_told):
    _train(make_parts, [True] * num_idle + [False] * (20 - num_idle), WARM_UP + 20)
    assert len(told) == is_told
    if is_told:
        assert told[0].startswith(f"the GPU stood idle before {num_idle * 5}% of the last 20 steps: at about 2")


def test_the_last_twenty_count_and_it_is_told_once(make_parts, told):
    _train(make_parts, [False] * 30 + [True] * 10, WARM_UP + 40)
    assert told == []
    _train(make_parts, [True] * 10 + [False] * 15 + [True] * 10, WARM_UP + 35)
    assert told == []
    _train(make_parts, [False] * 30 + [True] * 11, WARM_UP + 60)
    assert len(told) == 1 and "55% of the last 20" in told[0]


def test_tokens_a_step_are_those_of_the_plan(make_parts, told):
    _train(make_parts, [True] * 20, WARM_UP + 20)
    plan = make_parts().plan
    tokens = sum(plan.step(step, 0).num_tokens for step in range(WARM_UP, WARM_UP + 20)) / 20
    assert f"at about {tokens:,.0f} tokens a step" in told[0]


def test_the_mark_stands_before_the_update_and_the_look_after_the_step(make_parts, told, monkeypatch):
    def updating(parts, *given, update=loop._update):
        parts.watch.end_of_work.calls.append("update")
        return update(parts, *given)

    monkeypatch.setattr(loop, "_update", updating)
    calls = _train(make_parts, [False] * 2, WARM_UP + 2)
    assert calls == ["mark", "update"] * WARM_UP + ["mark", "update", "look"] * 2


class Reading:
    """A callback that reads the figures of every other step, for which the host waits."""

    def on_train_start(self, parts, state): ...

    def on_step_end(self, parts, state, result):
        if state.global_step % 2 == 0:
            read_steps(parts, state)

    def on_train_end(self, parts, state): ...


def test_steps_after_which_the_host_waited_do_not_count(make_parts, told):
    calls = _train(make_parts, [True] * 20, WARM_UP + 40, before=[Reading()])
    assert calls.count("look") == 20 and len(told) == 1


def _waiting(parts):
    parts.optimizer = make_optimizer(parts.model, "adamw_8bit", 0.1, 0.0)


SILENT = {
    "the host waits in each update": _waiting,
    "memory is short": lambda parts: parts.splits.add(Split(1, 2)),
}


@pytest.mark.parametrize("why", SILENT)
def test_nothing_is_told_where_it_says_nothing_or_nothing_helps(make_parts, told, why):
    _train(make_parts, [True] * 20, WARM_UP + 20, SILENT[why])
    assert told == []


def test_a_cpu_is_never_looked_at(make_parts, told):
    assert end_of_work(torch.device("cpu")) is None
    train(make_parts(total_steps=30), TrainState(), [IdleCallback()])
    assert told == []


def _planned(**settings):
    def plan_otherwise(parts):
        changed = replace(parts.plan.settings, **settings)
        parts.plan = StepPlan(parts.table.num_tokens, parts.table.num_supervised_tokens, changed)

    return plan_otherwise


SMALLER_PASSES = (
    "raise train.micro_batch_size (now 2) and lower train.gradient_accumulation_steps (now 2) by the same factor: "
    "the same steps in larger passes"
)
CURES = {
    "several passes": ({}, SMALLER_PASSES),
    "one pass": (
        {"gradient_accumulation_steps": 1},
        "raise train.micro_batch_size (now 2); steps of more examples are another run",
    ),
    "packed into one pass": (
        {"packing": True, "max_seq_len": 100},
        "raise train.micro_batch_size (now 2); steps of more examples are another run",
    ),
    "tokens in several passes": (
        {"tokens_per_step": 32},
        "raise train.micro_batch_size (now 2): the same steps in larger passes",
    ),
    "tokens in one pass": (
        {"tokens_per_step": 32, "micro_batch_size": 20},
        "raise train.tokens_per_step (now 32); steps of more tokens are another run",
    ),
}


@pytest.mark.parametrize("how", CURES)
def test_the_key_to_raise_is_one_that_makes_passes_larger(make_parts, told, how):
    settings, cure = CURES[how]
    _train(make_parts, [True] * 20, WARM_UP + 20, _planned(**settings))
    assert told[0].endswith(f"fast enough; {cure}")
