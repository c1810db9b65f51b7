"""A training step asks the device for no value: nothing in it makes the host wait."""

import traceback
import warnings

import pytest
import torch
from tiny_training import FULL, LORA, Setup, make_parts
from torch.utils._python_dispatch import TorchDispatchMode

from llmtune.models.attention import VARLEN_KERNEL, set_attention
from llmtune.models.precision import Precision
from llmtune.models.token_loss import CHUNKED, choose_loss, set_loss, token_loss_sum
from llmtune.training import loss as loss_module
from llmtune.training.ahead import StepBatches, StepsAhead
from llmtune.training.callbacks import idle
from llmtune.training.callbacks.idle import IdleCallback
from llmtune.training.loop import train, train_step
from llmtune.training.parts import TrainState

PACKED, ALL_WEIGHTS, PADDED = Setup(LORA), Setup(FULL), Setup(LORA, packed=False)
NAMES = ["packed", "all weights", "padded"]
WAITING = ("nonzero", "_local_scalar_dense", "is_nonzero", "masked_select", "_unique2", "unique_dim", "equal")
"""What needs a value of the device to go on: shapes that depend on content, and numbers for the host."""


class NoWaits(TorchDispatchMode):
    """Refuses what makes the host wait for a device, but for transformers' own look at a mask, which it counts."""

    def __init__(self):
        super().__init__()
        self.masks = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in WAITING:
            frames = traceback.extract_stack()
            assert any(frame.filename.endswith("masking_utils.py") for frame in frames), f"{name} waits for the device"
            self.masks += 1
        return func(*args, **(kwargs or {}))


def _step_twice(parts, mode):
    """The second step within the mode; the first has chosen the loss and made the optimizer's state."""
    train_step(parts, TrainState())
    with mode:
        return train_step(parts, TrainState(global_step=1))


@pytest.mark.fast
@pytest.mark.parametrize("setup", [PACKED, ALL_WEIGHTS, PADDED], ids=NAMES)
def test_no_operation_of_a_step_waits(tiny_llama, setup):
    parts, mode = make_parts(tiny_llama, setup), NoWaits()
    assert choose_loss(parts.model).name == CHUNKED
    assert _step_twice(parts, mode).known.loss > 0
    assert mode.masks <= 2 * len(parts.plan.step(1, 0).micro_batches), "two looks a micro-batch at most"


@pytest.mark.fast
@pytest.mark.parametrize("ask", [lambda t: t.nonzero(), lambda t: t.sum().item()])
def test_control_a_step_that_asks_is_told(tiny_llama, monkeypatch, ask):
    def asking(model, **inputs):
        total = token_loss_sum(model, **inputs)
        ask(total.detach())
        return total

    parts = make_parts(tiny_llama, PACKED)
    monkeypatch.setattr(loss_module, "token_loss_sum", asking)
    with pytest.raises(AssertionError, match="waits for the device"):
        _step_twice(parts, NoWaits())


@pytest.mark.gpu
@pytest.mark.parametrize("is_ahead", [False, True], ids=["in its turn", "made ahead"])
@pytest.mark.parametrize("setup", [PACKED, ALL_WEIGHTS], ids=NAMES[:2])
def test_no_call_of_a_step_synchronises_on_a_gpu(tiny_llama, setup, is_ahead):
    parts = make_parts(tiny_llama, setup)
    parts.model.to("cuda")
    parts.device, parts.precision = torch.device("cuda"), Precision("bf16", "cuda", "for the test")
    set_attention(parts.model, VARLEN_KERNEL)
    set_loss(parts.model, CHUNKED)
    train_step(parts, TrainState())
    torch.cuda.synchronize()
    with StepsAhead(parts) as ahead:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = train_step(parts, TrainState(global_step=1), ahead if is_ahead else None)
                parts.watch.end_of_work.is_reached()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    where = [one.filename for one in caught if "synchroniz" in str(one.message)]
    assert [file for file in where if not file.endswith("masking_utils.py")] == []
    assert len(where) <= len(parts.plan.step(1, 0).micro_batches), "transformers' look at a mask"
    assert result.known.loss > 0


@pytest.mark.gpu
def test_what_is_made_ahead_is_copied_out_of_pinned_memory_and_stays_what_it_was(tiny_llama):
    parts = make_parts(tiny_llama, PACKED)
    expected = [StepBatches(parts, parts.plan.step(step, 0)).passes(1) for step in range(10)]
    parts.device, copied = torch.device("cuda"), []
    with StepsAhead(parts) as ahead:
        for step in range(10):
            torch.cuda._sleep(20_000_000)  # the copies wait while the host goes on, and lets go of what they read
            batches = [batch for passes in ahead.take(step).passes(1) for batch in passes]
            assert all(value.is_pinned() for batch in batches for value in _tensors(batch))
            copied.append([batch.to("cuda") for batch in batches])
            del batches
    for step in range(10):
        for batch, passes in zip(copied[step], expected[step], strict=True):
            for ours, theirs in zip(_tensors(batch), _tensors(next(iter(passes))), strict=True):
                assert torch.equal(ours.cpu(), theirs)


def _tensors(batch):
    return [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]


@pytest.mark.gpu
@pytest.mark.parametrize(("cycles", "is_told"), [(0, True), (100_000_000, False)], ids=["small", "large"])
def test_a_gpu_that_waits_for_the_host_is_told(tiny_llama, monkeypatch, cycles, is_told):
    told = []
    monkeypatch.setattr(idle, "warn", told.append)
    parts = make_parts(tiny_llama, Setup(LORA, num_epochs=6))
    parts.model.to("cuda")
    parts.device, parts.precision = torch.device("cuda"), Precision("bf16", "cuda", "for the test")
    set_attention(parts.model, VARLEN_KERNEL)
    set_loss(parts.model, CHUNKED)
    if cycles:
        parts.model.get_input_embeddings().register_forward_hook(lambda *_: torch.cuda._sleep(cycles))
    train(parts, TrainState(), [IdleCallback()])
    assert len(told) == is_told
    assert not is_told or "the GPU stood idle before" in told[0]
