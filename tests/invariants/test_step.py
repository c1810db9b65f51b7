"""One step is the same however it is cut, equals transformers' own, and never lets a NaN reach a weight."""

import copy
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from tiny_training import FULL, LORA, LORA_DROPOUT, Recorder, Setup, make_parts, weights_digest

from llmtune.data.collate import collate
from llmtune.errors import TrainingFault
from llmtune.models import chunked_loss
from llmtune.models.decoding import choose_decoder
from llmtune.models.fast.decoder import decoder_of
from llmtune.models.token_loss import CHUNKED, WHOLE, choose_loss, set_loss
from llmtune.training import loss as loss_module
from llmtune.training.loop import train, train_step
from llmtune.training.parts import TrainState

pytestmark = pytest.mark.fast

AT_ONCE = Setup(micro_batch_size=8, gradient_accumulation_steps=1, packed=False)
CUTS = [(8, 1), (4, 2), (1, 8)]
METHODS = pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
LOSSES = pytest.mark.parametrize("name", [WHOLE, CHUNKED], ids=["whole", "chunked"])
VOCABULARY = 384


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Seven positions a chunk, so that a micro-batch has several and the last is short."""
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", 7 * VOCABULARY)


class FirstStep(NamedTuple):
    loss: float
    grad_norm: float


def _parts(model_folder, setup, name, dtype=torch.float32):
    parts = make_parts(model_folder, setup)
    parts.model.to(dtype)
    if parts.settings.packed and not setup.own_decoder and dtype != torch.float32:
        choose_decoder(parts.model, "auto", parts.precision, packed=True)  # for the weights as they are now
    for module in parts.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    set_loss(parts.model, name)
    return parts


def _first_step(model_folder, setup, name=WHOLE, dtype=torch.float32):
    result = train_step(_parts(model_folder, setup, name, dtype), TrainState())
    return FirstStep(float(result.loss), float(result.grad_norm))


@METHODS
@PACKED
@LOSSES
@pytest.mark.parametrize(("size", "accumulation"), CUTS)
def test_loss_and_gradient_norm_do_not_depend_on_the_cut(tiny_llama, method, packed, name, size, accumulation):
    whole = _first_step(tiny_llama, replace(AT_ONCE, method=method))
    cut = _first_step(tiny_llama, Setup(method, size, accumulation, packed=packed), name)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-6)
    assert whole.grad_norm > 1e-3


@METHODS
@pytest.mark.parametrize(("size", "accumulation"), CUTS)
def test_nor_on_the_models_own_decoder(tiny_llama, method, size, accumulation):
    whole = _first_step(tiny_llama, replace(AT_ONCE, method=method))
    setup = Setup(method, size, accumulation)
    assert decoder_of(make_parts(tiny_llama, setup).model) is not None
    cut = _first_step(tiny_llama, replace(setup, own_decoder=True), CHUNKED)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-6)


@METHODS
@PACKED
@LOSSES
@pytest.mark.parametrize(("size", "accumulation"), CUTS)
def test_nor_in_float64(tiny_model, method, packed, name, size, accumulation):
    whole = _first_step(tiny_model, replace(AT_ONCE, method=method), dtype=torch.float64)
    setup = Setup(method, size, accumulation, packed=packed, own_decoder=True)
    cut = _first_step(tiny_model, setup, name, torch.float64)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-12)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-8)


@METHODS
@pytest.mark.parametrize(("size", "accumulation"), CUTS[1:])
def test_nor_in_float64_on_llmtunes_decoder(tiny_llama, method, size, accumulation):
    """Its norms are float64 too, where transformers' are float32: so it is compared with itself."""
    whole = _first_step(tiny_llama, replace(AT_ONCE, method=method, packed=True), CHUNKED, torch.float64)
    cut = _first_step(tiny_llama, Setup(method, size, accumulation), CHUNKED, torch.float64)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-12)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-8)


FILLED = replace(AT_ONCE, micro_batch_size=18, tokens_per_step=160)
"""A step of as many examples as 160 tokens hold, in one micro-batch."""


@METHODS
@PACKED
@pytest.mark.parametrize(("size", "accumulation"), [(1, 1), (2, 5), (3, 1)])
def test_nor_do_those_of_a_step_of_tokens(tiny_llama, method, packed, size, accumulation):
    whole = _first_step(tiny_llama, replace(FILLED, method=method))
    setup = replace(
        FILLED, method=method, micro_batch_size=size, packed=packed, gradient_accumulation_steps=accumulation
    )
    cut = _first_step(tiny_llama, setup, CHUNKED)
    assert len(make_parts(tiny_llama, setup).plan.step(0, 0).micro_batches) > 1
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-6)


def test_a_run_takes_chunks_by_itself(tiny_model):
    assert choose_loss(make_parts(tiny_model, Setup()).model).name == CHUNKED


def _mean_of_means(monkeypatch):
    def broken(model, batch, divisor, original=loss_module.micro_batch_loss):
        return original(model, batch, 8 * len(batch.targets))

    monkeypatch.setattr(loss_module, "micro_batch_loss", broken)


def _masked_by_token(monkeypatch):
    def broken(model, batch, divisor, original=loss_module.micro_batch_loss):
        kept = batch.targets != batch.targets[-1]
        names = ("predicted", "targets", "rows")
        return original(model, replace(batch, **{name: getattr(batch, name)[kept] for name in names}), divisor)

    monkeypatch.setattr(loss_module, "micro_batch_loss", broken)


def _row_forgotten(monkeypatch):
    def broken(*given, original=chunked_loss._spans):
        return (slice(span.start, span.stop - 1) for span in original(*given))

    monkeypatch.setattr(chunked_loss, "_spans", broken)


@pytest.mark.parametrize("damage", [_mean_of_means, _masked_by_token, _row_forgotten])
@pytest.mark.parametrize("setup", [AT_ONCE, FILLED], ids=["examples", "tokens"])
@METHODS
def test_control_each_damage_is_told_apart(tiny_llama, monkeypatch, method, damage, setup):
    whole = _first_step(tiny_llama, replace(setup, method=method))
    damage(monkeypatch)
    cut = _first_step(
        tiny_llama, replace(setup, method=method, micro_batch_size=1, gradient_accumulation_steps=8), CHUNKED
    )
    assert abs(cut.loss / whole.loss - 1) > 1e-4
    assert abs(cut.grad_norm / whole.grad_norm - 1) > 1e-4


@pytest.mark.parametrize(
    ("cut", "name"),
    [(Setup(LORA, 1, 8, packed=False), CHUNKED), (Setup(LORA, 4, 2), WHOLE), (Setup(FULL, 2, 4), CHUNKED)],
    ids=["lora, padded, chunked", "lora, packed, whole", "full, packed, chunked"],
)
def test_fifty_steps_do_not_depend_on_the_cut(tiny_llama, cut, name):
    def losses(setup, name):
        recorder = Recorder()
        parts = _parts(tiny_llama, replace(setup, num_examples=80, num_epochs=5, learning_rate=5e-3), name)
        train(parts, TrainState(), [recorder])
        return [float(loss) for loss, _ in recorder.steps.values()]

    whole, found = losses(replace(AT_ONCE, method=cut.method), WHOLE), losses(cut, name)
    assert len(whole) == 50
    assert found == pytest.approx(whole, rel=1e-5)
    assert whole[-1] < 0.97 * whole[0]


@PACKED
def test_the_loss_is_transformers_own_on_the_same_labels(tiny_llama, packed):
    parts = make_parts(tiny_llama, replace(AT_ONCE, packed=packed))
    reference = make_parts(tiny_llama, AT_ONCE)
    indices = parts.plan.step(0, 0).indices
    batch = collate(reference.table, indices, packed=False, pad_token_id=2)
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.predicted] = batch.targets
    with torch.no_grad():
        theirs = reference.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), labels=labels
        ).loss
    assert float(train_step(parts, TrainState()).loss) == pytest.approx(theirs.item(), rel=1e-6)


@METHODS
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
    assert weights_digest(parts.model) == digests[1][0] != digests[0][0]
    for key, entries in parts.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, digests[1][1]["state"][key][entry]) for entry, value in entries.items())


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
