"""One step is the same however it is cut, equals transformers' own, and never lets a NaN reach a weight."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_training import FULL, LORA, LORA_DROPOUT, Recorder, Setup, make_parts, weights_digest

from llmtune.data.collate import collate
from llmtune.errors import TrainingFault
from llmtune.training import loss as loss_module
from llmtune.training.loop import train, train_step
from llmtune.training.parts import TrainState

pytestmark = pytest.mark.fast

WHOLE = Setup(micro_batch_size=8, gradient_accumulation_steps=1, packed=False)
CUTS = [(8, 1), (4, 2), (1, 8)]


def _first_step(model_folder, setup):
    return train_step(make_parts(model_folder, setup), TrainState())


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("size", "accumulation"), CUTS)
def test_loss_and_gradient_norm_do_not_depend_on_the_cut(tiny_llama, method, packed, size, accumulation):
    whole = _first_step(tiny_llama, replace(WHOLE, method=method))
    cut = _first_step(tiny_llama, Setup(method, size, accumulation, packed=packed))
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-6)
    assert whole.grad_norm > 1e-3


def test_control_a_mean_of_micro_batch_means_is_told_apart(tiny_llama, monkeypatch):
    whole = _first_step(tiny_llama, WHOLE)

    def mean_of_means(model, batch, divisor, original=loss_module.micro_batch_loss):
        supervised = int((batch.labels != -100).sum())
        return original(model, batch, 8 * supervised)

    monkeypatch.setattr(loss_module, "micro_batch_loss", mean_of_means)
    cut = _first_step(tiny_llama, Setup(micro_batch_size=1, gradient_accumulation_steps=8, packed=False))
    assert abs(cut.loss / whole.loss - 1) > 1e-4


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_loss_is_transformers_own_on_the_same_labels(tiny_llama, packed):
    parts = make_parts(tiny_llama, replace(WHOLE, packed=packed))
    reference = make_parts(tiny_llama, WHOLE)
    indices = parts.plan.step(0, 0).indices
    batch = collate(reference.table, indices, packed=False, pad_token_id=2)
    with torch.no_grad():
        theirs = reference.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), labels=batch.labels
        ).loss
    assert train_step(parts, TrainState()).loss == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
def test_one_nan_stops_before_the_update_with_the_weights_of_the_step_before(tiny_llama, method):
    parts, state = make_parts(tiny_llama, Setup(method)), TrainState()
    digests = []

    class Poison(Recorder):
        def on_step_end(self, parts, state, result):
            digests.append((weights_digest(parts.model), copy.deepcopy(parts.optimizer.state_dict())))
            if state.global_step == 2:
                head = parts.model.get_output_embeddings()
                head.register_forward_hook(lambda module, inputs, output: output * float("nan"))

    with pytest.raises(TrainingFault, match=r"step 3: the loss is nan .*example-\d+ \(file.jsonl:\d+\)"):
        train(parts, state, [Poison()])
    assert state.global_step == 2
    assert weights_digest(parts.model) == digests[-1][0] != digests[-2][0]
    for key, entries in parts.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, digests[-1][1]["state"][key][entry]) for entry, value in entries.items())


@pytest.mark.parametrize("method", [LORA_DROPOUT, FULL], ids=["lora", "full"])
def test_equal_seeds_give_equal_runs_bit_for_bit_and_others_do_not(tiny_model, method):
    def run(seed):
        recorder, parts = Recorder(), make_parts(tiny_model, Setup(method, packed=False, seed=seed))
        torch.rand(seed)  # a draw elsewhere moves nothing
        train(parts, TrainState(), [recorder])
        return weights_digest(parts.model), recorder.steps

    first, second, other = run(1), run(1), run(2)
    assert first == second
    assert first[0] != other[0]


def test_only_adapters_change(tiny_model):
    parts = make_parts(tiny_model, Setup(LORA, packed=False))
    before = {name: parameter.detach().clone() for name, parameter in parts.model.named_parameters()}
    train(parts, TrainState(), [])
    changed = {name for name, parameter in parts.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name}
