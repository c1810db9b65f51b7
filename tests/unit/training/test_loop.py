"""One step against the same step by hand, and what stops or skips an update."""

import copy

import pytest
import torch
import torch.nn.functional as F

from llmtune.errors import TrainingFault
from llmtune.training.loop import train, train_step
from llmtune.training.parts import TrainState
from llmtune.training.scaler import make_scaler

pytestmark = pytest.mark.fast


def _loss_by_hand(model, table, indices):
    """The mean over all supervised tokens of the examples, one after the other."""
    losses = []
    for index in indices:
        ids = torch.tensor(table.input_ids(index)).long()
        labels = torch.tensor(table.labels(index)).long()
        logits = model(input_ids=ids[None]).logits[0, :-1]
        kept = labels[1:] != -100
        losses.append(F.cross_entropy(logits[kept], labels[1:][kept], reduction="none"))
    return torch.cat(losses).mean()


def test_a_step_is_the_mean_over_all_supervised_tokens_and_one_plain_update(make_parts):
    parts = make_parts(optimizer="sgd")
    by_hand = copy.deepcopy(parts.model)
    loss = _loss_by_hand(by_hand, parts.table, parts.plan.step(0, 0).indices)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in by_hand.parameters()]).norm()
    result = train_step(parts, TrainState())
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-6)
    for ours, theirs in zip(parts.model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(ours, theirs - 0.1 * theirs.grad, atol=1e-7)


def test_the_gradient_is_clipped_but_its_norm_told_as_it_was(make_parts):
    free, clipped = make_parts(optimizer="sgd"), make_parts(optimizer="sgd", max_grad_norm=0.01)
    start = [p.detach().clone() for p in clipped.model.parameters()]
    results = [train_step(parts, TrainState()) for parts in (free, clipped)]
    assert results[0].grad_norm == results[1].grad_norm > 0.01
    moved = torch.cat([(p - s).flatten() for p, s in zip(clipped.model.parameters(), start, strict=True)])
    assert moved.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_train_counts_steps_and_tokens_and_calls_back_in_order(make_parts):
    calls = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def on_train_start(self, parts, state):
            calls.append((self.name, "start", state.global_step))

        def on_step_end(self, parts, state, result):
            calls.append((self.name, "step", state.global_step))

        def on_train_end(self, parts, state):
            calls.append((self.name, "end", state.global_step))

    parts = make_parts(total_steps=3)
    state = train(parts, TrainState(), [Recorder("a"), Recorder("b")])
    assert (state.global_step, state.num_tokens) == (3, int(parts.table.num_tokens.sum()))
    assert state.num_supervised_tokens == int(parts.table.num_supervised_tokens.sum())
    assert calls == [("a", "start", 0), ("b", "start", 0)] + [
        (name, "step", step) for step in (1, 2, 3) for name in ("a", "b")
    ] + [("a", "end", 3), ("b", "end", 3)]  # fmt: skip


def test_a_request_to_stop_ends_before_the_next_step(make_parts):
    class Stopper:
        def on_train_start(self, parts, state): ...
        def on_step_end(self, parts, state, result):
            state.should_stop = state.global_step == 2

        def on_train_end(self, parts, state): ...

    assert train(make_parts(), TrainState(), [Stopper()]).global_step == 2


def test_the_loss_falls(make_parts):
    parts, state = make_parts(total_steps=60), TrainState()
    first = _loss_by_hand(parts.model, parts.table, range(12)).item()
    train(parts, state, [])
    assert _loss_by_hand(parts.model, parts.table, range(12)).item() < 0.5 * first


def test_a_nan_loss_stops_before_the_update_and_names_step_and_examples(make_parts):
    parts, state = make_parts(), TrainState(global_step=1)
    step = parts.plan.step(1, 0)
    culprit = step.micro_batches[1]
    token = int(parts.table.rows[culprit[0]][-2])  # predicts the last token, which is supervised
    others = [index for index in range(12) if index not in culprit]
    for index in others:
        parts.table.rows[index][parts.table.rows[index] == token] = (token + 1) % 11
    with torch.no_grad():
        parts.model.embedding.weight[token] = float("nan")
    before = copy.deepcopy(parts.model.state_dict())
    with pytest.raises(TrainingFault) as fault:
        train_step(parts, state).read()
    assert str(fault.value).startswith("step 2: the loss is nan")
    named = str(fault.value).split("examples: ")[1].split(". Look")[0]
    assert set(named.split(", ")) == {f"id{index} (file.jsonl:{index + 1})" for index in culprit}
    assert all(torch.equal(value.nan_to_num(), before[key].nan_to_num()) for key, value in
               parts.model.state_dict().items())  # fmt: skip
    assert not parts.optimizer.state


def test_an_infinite_gradient_with_a_finite_loss_is_a_fault_without_a_scaler(make_parts):
    parts = make_parts()
    parts.model.head.bias.register_hook(lambda gradient: gradient * float("inf"))
    before = copy.deepcopy(parts.model.state_dict())
    with pytest.raises(TrainingFault, match="gradient norm"):
        train_step(parts, TrainState()).read()
    assert all(torch.equal(value, before[key]) for key, value in parts.model.state_dict().items())


def _overflowing(make_parts, init_scale):
    parts = make_parts(optimizer="sgd")
    parts.scaler = make_scaler(parts.device, init_scale=init_scale)
    parts.model.head.bias.register_hook(lambda gradient: gradient * float("inf"))
    return parts


def test_a_loss_scale_changes_nothing_but_rounding(make_parts):
    plain, scaled = make_parts(optimizer="sgd"), make_parts(optimizer="sgd")
    scaled.scaler = make_scaler(scaled.device)
    results = [train_step(parts, TrainState()) for parts in (plain, scaled)]
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-6)
    for one, other in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_an_overflow_skips_the_update_and_halves_the_scale(make_parts):
    parts, state = _overflowing(make_parts, 1024.0), TrainState()
    before = copy.deepcopy(parts.model.state_dict())
    result = train_step(parts, state)
    assert result.skipped
    assert parts.scaler.get_scale() == 512.0
    assert (state.num_overflows, state.overflows_in_a_row) == (1, 1)
    assert all(torch.equal(value, before[key]) for key, value in parts.model.state_dict().items())


def test_ten_overflows_in_a_row_are_a_fault(make_parts):
    parts, state = _overflowing(make_parts, 2.0**20), TrainState()
    for _ in range(9):
        assert train_step(parts, state).skipped
    with pytest.raises(TrainingFault, match="gradient norm nan"):
        train_step(parts, state).read()


def test_an_overflow_at_scale_one_is_a_fault(make_parts):
    with pytest.raises(TrainingFault):
        train_step(_overflowing(make_parts, 1.0), TrainState()).read()


def test_an_update_ends_the_row_of_overflows(make_parts):
    parts, state = make_parts(), TrainState(overflows_in_a_row=5, num_overflows=5)
    train_step(parts, state).read()
    assert (state.overflows_in_a_row, state.num_overflows) == (0, 5)
