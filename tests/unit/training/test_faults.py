"""A step that isn't finite leaves weights and state as they were, on every optimizer, without a wait of the host."""

import copy

import pytest
import torch

from llmtune.errors import TrainingFault
from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.training import loop
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.callbacks.metrics import MetricsCallback
from llmtune.training.callbacks.validation import ValidationCallback, ValidationSettings
from llmtune.training.checkpoint import list_checkpoints
from llmtune.training.loop import train, train_step
from llmtune.training.optimizer import update_weights
from llmtune.training.parts import TrainState
from llmtune.training.scaler import make_scaler

pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")]

NAMES = ["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "sgd"]


class Breaking:
    """Stops nothing itself: from `step` on, `num_steps` steps have a loss or gradient that isn't finite."""

    def __init__(self, parts, step, kind, num_steps=1):
        self._bad = range(step - 1, step - 1 + num_steps)
        self._now = 0
        if kind == "loss":
            parts.model.head.register_forward_hook(lambda _, inputs, output: output * self._factor("nan"))
        else:
            parts.model.head.bias.register_hook(lambda gradient: gradient * self._factor("inf"))

    def _factor(self, value):
        return float(value) if self._now in self._bad else 1.0

    def on_train_start(self, parts, state): ...
    def on_step_end(self, parts, state, result):
        self._now = state.global_step

    def on_train_end(self, parts, state): ...


def _snapshot(parts):
    """Weights and optimizer state by name, bit for bit."""
    names = {parameter: name for name, parameter in parts.model.named_parameters()}
    state = {
        f"{names[parameter]}/{entry}": value.clone() if isinstance(value, torch.Tensor) else value
        for parameter, entries in parts.optimizer.state.items()
        for entry, value in entries.items()
    }
    return {**{name: parameter.detach().clone() for parameter, name in names.items()}, **state}


def _same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def _undisturbed(make_parts, optimizer, num_steps):
    """What `num_steps` sound steps leave; the schedule is constant, so that the number of steps moves nothing else."""
    parts = make_parts(total_steps=num_steps, optimizer=optimizer, max_grad_norm=1.0)
    state = train(parts, TrainState(), [])
    return parts, state


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize(("step", "num_steps"), [(1, 1), (3, 1), (3, 2)])
def test_weights_and_state_are_those_of_the_step_before_however_late_it_is_read(
    make_parts, name, kind, step, num_steps
):
    expected, counts = _undisturbed(make_parts, name, step - 1)
    parts, state = make_parts(total_steps=7, optimizer=name, max_grad_norm=1.0), TrainState()
    with pytest.raises(TrainingFault, match=rf"^step {step}: the loss is .* examples: id") as fault:
        train(parts, state, [Breaking(parts, step, kind, num_steps)])
    named = {part.split(" (")[0] for part in str(fault.value).split("examples: ")[1].split(". Look")[0].split(", ")}
    assert named == {f"id{index}" for index in parts.plan.step(step - 1, 0).indices}
    assert _same(_snapshot(parts), _snapshot(expected))
    assert (state.global_step, state.num_tokens) == (step - 1, counts.num_tokens)
    assert state.num_supervised_tokens == counts.num_supervised_tokens


@pytest.mark.parametrize("name", NAMES)
def test_control_an_update_that_is_not_withheld_reaches_the_weights(make_parts, name, monkeypatch):
    monkeypatch.setattr(loop, "update_weights", lambda optimizer, withheld, **_: optimizer.step() or [])
    parts = make_parts(total_steps=4, optimizer=name, max_grad_norm=1.0)
    with pytest.raises(TrainingFault):
        train(parts, TrainState(), [Breaking(parts, 2, "loss")])
    expected, _ = _undisturbed(make_parts, name, 1)
    assert not _same(_snapshot(parts), _snapshot(expected))


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_that_is_down_leaves_every_bit_of_the_plain_update(make_parts, name):
    ours, plain = make_parts(optimizer=name), make_parts(optimizer=name)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        for one, other in zip(ours.trainable, plain.trainable, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        update_weights(ours.optimizer, torch.zeros(()))
        plain.optimizer.step()
        assert _same(_snapshot(ours), _snapshot(plain))


@pytest.mark.parametrize("log_every_steps", [1, 10])
def test_a_run_is_the_same_however_often_it_is_read(make_parts, tracker, tmp_path, log_every_steps):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    parts = make_parts(total_steps=25)
    train(parts, TrainState(), [MetricsCallback(log, tracker, log_every_steps)])
    expected = make_parts(total_steps=25)
    losses = [(step + 1, train_step(expected, TrainState(global_step=step)).loss) for step in range(25)]
    assert log.losses("train/loss") == losses
    assert [step for step, _ in tracker.metrics] == (list(range(1, 26)) if log_every_steps == 1 else [10, 20, 25])
    assert _same(_snapshot(parts), _snapshot(expected))


def test_a_fault_between_two_log_lines_keeps_the_last_good_checkpoint_and_logs_nothing_else(
    make_parts, tracker, tmp_path
):
    parts, log = make_parts(total_steps=40, max_grad_norm=1.0), MetricsLog(tmp_path / "metrics.jsonl")
    expected, _ = _undisturbed(make_parts, "adamw", 13)
    callbacks = [
        MetricsCallback(log, tracker, 10),
        ValidationCallback(lambda model: 1.0, ValidationSettings(12, None), log, tracker),
        saving := CheckpointCallback(RunFolder(tmp_path), CheckpointSettings(6, 12, keep=1)),
        breaking := Breaking(parts, 14, "gradient", num_steps=3),
    ]
    with pytest.raises(TrainingFault, match=r"^step 14"), saving:
        train(parts, TrainState(), callbacks)
    assert breaking._now == 17, "read before the save after step 18"
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["checkpoint-12"]
    assert [step for step, _ in log.losses("train/loss")] == list(range(1, 14))
    written = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in written and "Inf" not in written
    weights = dict(expected.model.named_parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in parts.model.named_parameters())


def test_after_a_fault_nothing_is_saved_or_validated(make_parts, tracker, tmp_path):
    parts, state = make_parts(), TrainState()
    train_step(parts, state).read()
    parts.model.head.bias.register_hook(lambda gradient: gradient * float("nan"))
    state.global_step = 1
    result = train_step(parts, state)
    state.global_step = 2
    callbacks = [
        CheckpointCallback(RunFolder(tmp_path), CheckpointSettings(1, 1, keep=1)),
        ValidationCallback(
            lambda model: 1.0, ValidationSettings(1, None), MetricsLog(tmp_path / "metrics.jsonl"), tracker
        ),
    ]
    for callback in callbacks:
        with pytest.raises(TrainingFault, match=r"^step 2"):
            callback.on_step_end(parts, state, result)
    assert list_checkpoints(tmp_path / "checkpoints") == []
    assert tracker.metrics == []


class Waits:
    """Counts what makes the host wait for the device; reading a tensor's shape or type does not."""

    def __init__(self, monkeypatch):
        self.steps = []
        self._count = 0
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
            original = getattr(torch.Tensor, name)
            monkeypatch.setattr(torch.Tensor, name, self._counted(original))

    def _counted(self, original):
        def call(tensor, *args, **kwargs):
            self._count += 1
            return original(tensor, *args, **kwargs)

        return call

    def on_train_start(self, parts, state):
        self._count = 0

    def on_step_end(self, parts, state, result):
        self.steps.append(self._count)
        self._count = 0

    def on_train_end(self, parts, state): ...


# bitsandbytes waits for the device itself, after each parameter
@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_no_step_waits_for_the_device_between_log_lines(make_parts, tracker, tmp_path, monkeypatch, name):
    parts = make_parts(total_steps=30, optimizer=name, max_grad_norm=1.0)
    metrics = MetricsCallback(MetricsLog(tmp_path / "metrics.jsonl"), tracker, 10)
    waits = Waits(monkeypatch)
    train(parts, TrainState(), [metrics, waits])
    read = [number for number, count in enumerate(waits.steps, start=1) if count]
    assert read == [2, 10, 20, 30], "the end of the warm-up, and the log lines"
    assert {waits.steps[number - 1] for number in read} == {1}, "one transfer each"


def test_control_a_loss_asked_for_at_each_step_is_seen_as_a_wait(make_parts, monkeypatch):
    class Asking:
        def on_train_start(self, parts, state): ...
        def on_step_end(self, parts, state, result):
            assert result.loss > 0

        def on_train_end(self, parts, state): ...

    waits = Waits(monkeypatch)
    train(make_parts(total_steps=4), TrainState(), [Asking(), waits])
    assert waits.steps == [1, 1, 1, 1]


def test_steps_that_nobody_reads_are_read_in_the_end_and_before_they_pile_up(make_parts, monkeypatch):
    monkeypatch.setattr(loop, "MOST_UNREAD", 3)
    waits = Waits(monkeypatch)
    state = train(make_parts(total_steps=8), TrainState(), [waits])
    assert waits.steps == [0, 0, 1, 0, 0, 1, 0, 0]
    assert state.seconds > 0


@pytest.mark.parametrize("name", NAMES)
def test_an_fp16_overflow_is_as_if_the_step_had_not_been(make_parts, name):
    parts, expected = (make_parts(total_steps=3, optimizer=name) for _ in range(2))
    for entry in (parts, expected):
        entry.scaler = make_scaler(entry.device, init_scale=1024.0)
    state = TrainState()
    train(parts, state, [Breaking(parts, 2, "gradient")])
    for step in (0, 2):
        expected.scaler.update(1024.0 if step == 0 else 512.0)
        train_step(expected, TrainState(global_step=step)).read()
    assert _same(_snapshot(parts), _snapshot(expected))
    assert (state.num_overflows, state.overflows_in_a_row, parts.scaler.get_scale()) == (1, 0, 512.0)


def test_a_first_step_that_overflows_leaves_a_fresh_state(make_parts):
    parts = make_parts(total_steps=1)
    parts.scaler = make_scaler(parts.device, init_scale=1024.0)
    before = copy.deepcopy(parts.model.state_dict())
    train(parts, TrainState(), [Breaking(parts, 1, "gradient")])
    assert all(torch.equal(value, before[name]) for name, value in parts.model.state_dict().items())
    for entries in parts.optimizer.state.values():
        assert all(int(value.count_nonzero()) == 0 for value in entries.values())


def test_overflows_are_counted_shown_and_logged(make_parts, tracker, tmp_path, capsys):
    parts, log = make_parts(total_steps=4), MetricsLog(tmp_path / "metrics.jsonl")
    parts.scaler = make_scaler(parts.device, init_scale=1024.0)
    train(parts, TrainState(), [MetricsCallback(log, tracker, 4), Breaking(parts, 2, "gradient", num_steps=2)])
    entries = log.read()
    assert [entry["train/num_overflows"] for entry in entries] == [0, 1, 2, 2]
    assert [entry["train/loss_scale"] for entry in entries] == [1024, 512, 256, 256]
    assert ["train/grad_norm" in entry for entry in entries] == [True, False, False, True]
    assert "fp16 overflowed, no update at step 2; loss scale now 512" in capsys.readouterr().out


def test_ten_overflows_in_a_row_are_a_fault_though_none_was_read(make_parts):
    parts, state = make_parts(total_steps=20), TrainState()
    parts.scaler = make_scaler(parts.device, init_scale=2.0**20)
    before = copy.deepcopy(parts.model.state_dict())
    with pytest.raises(TrainingFault, match=r"^step 10:"):
        train(parts, state, [Breaking(parts, 1, "gradient", num_steps=20)])
    assert (state.global_step, state.num_overflows) == (9, 9)
    assert all(torch.equal(value, before[name]) for name, value in parts.model.state_dict().items())


def test_a_nan_loss_under_fp16_is_a_fault_at_once(make_parts):
    parts, state = make_parts(), TrainState()
    parts.scaler = make_scaler(parts.device)
    with pytest.raises(TrainingFault, match=r"^step 2: the loss is nan"):
        train(parts, state, [Breaking(parts, 2, "loss")])
    assert state.num_overflows == 0
