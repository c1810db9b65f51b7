"""Every optimizer by name: it moves weights, decays matrices only, and its state survives a save bit for bit."""

import copy
import math

import pytest
import torch
from torch import nn

from llmtune.errors import RunError
from llmtune.training.optimizer import make_optimizer, update_weights
from llmtune.training.optimizer_state import optimizer_state, restore_optimizer, save_optimizer

pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")]

NAMES = ["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "sgd"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 96), nn.LayerNorm(96), nn.Linear(96, 4))
    model[2].requires_grad_(False)
    return model


def _step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_trainable_parameters_move_and_frozen_ones_do_not(model, name):
    before = copy.deepcopy(model.state_dict())
    _step(model, make_optimizer(model, name, 1e-2, 0.0), seed=1)
    moved = {key: not torch.equal(value, before[key]) for key, value in model.state_dict().items()}
    assert moved == {key: not key.startswith("2.") for key in moved}


@pytest.mark.parametrize("name", NAMES)
def test_decay_shrinks_matrices_by_rate_times_decay_and_leaves_vectors(model, name):
    other = copy.deepcopy(model)
    start = model[0].weight.detach().clone()
    _step(model, make_optimizer(model, name, 0.01, 0.5), seed=1)
    _step(other, make_optimizer(other, name, 0.01, 0.0), seed=1)
    assert torch.allclose(other[0].weight - model[0].weight, 0.01 * 0.5 * start, atol=1e-3 * 0.01)
    assert torch.equal(other[0].bias, model[0].bias)
    assert torch.equal(other[1].weight, model[1].weight)


def test_adamw_moves_by_the_rate_at_first(model):
    start = model[0].weight.detach().clone()
    _step(model, make_optimizer(model, "adamw", 0.01, 0.0), seed=1)
    assert torch.allclose((model[0].weight - start).abs(), torch.tensor(0.01), atol=1e-5)


def test_adafactor_moves_a_matrix_that_starts_at_zero_by_about_the_rate(model):
    nn.init.zeros_(model[0].weight)
    _step(model, make_optimizer(model, "adafactor", 0.01, 0.0), seed=1)
    root_mean_square = model[0].weight.detach().norm().item() / math.sqrt(model[0].weight.numel())
    assert root_mean_square == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_state", [True, False])
def test_a_restored_state_goes_on_bit_for_bit(model, name, with_state, dtype, tmp_path):
    model.to(dtype)
    optimizer = make_optimizer(model, name, 0.01, 0.1)
    for seed in range(3):
        _step(model, optimizer, seed)
    save_optimizer(optimizer_state(model, optimizer), tmp_path)
    resumed = copy.deepcopy(model)
    other = make_optimizer(resumed, name, 0.01, 0.1)
    if with_state:
        restore_optimizer(resumed, other, tmp_path)
    for seed in range(3, 5):
        _step(model, optimizer, seed)
        _step(resumed, other, seed)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    assert same is with_state


@pytest.mark.parametrize("withheld", [1.0, 0.0])
@pytest.mark.parametrize("name", NAMES)
def test_an_update_that_is_withheld_reaches_no_weight_in_bf16(model, name, withheld):
    model.to(torch.bfloat16)
    optimizer = make_optimizer(model, name, 0.01, 0.1)
    for seed in range(3):
        _step(model, optimizer, seed)
    before = [tensor.clone() for tensor in (*model.parameters(), *_tensors_of(optimizer))]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan")) if parameter.requires_grad else None
    update_weights(optimizer, torch.tensor(withheld))
    after = [*model.parameters(), *_tensors_of(optimizer)]
    unchanged = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert unchanged is bool(withheld)


def _tensors_of(optimizer):
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]


def test_another_optimizers_state_is_refused(model, tmp_path):
    optimizer = make_optimizer(model, "adamw", 0.01, 0.0)
    _step(model, optimizer, 0)
    save_optimizer(optimizer_state(model, optimizer), tmp_path)
    with pytest.raises(RunError, match=r"state of AdamW, but train\.optimizer now makes SGD"):
        restore_optimizer(model, make_optimizer(model, "sgd", 0.01, 0.0), tmp_path)


def test_state_of_parameters_that_no_longer_train_is_refused(model, tmp_path):
    optimizer = make_optimizer(model, "adamw", 0.01, 0.0)
    _step(model, optimizer, 0)
    save_optimizer(optimizer_state(model, optimizer), tmp_path)
    model[0].requires_grad_(False)
    with pytest.raises(RunError, match=r"don't train here, such as 0\.bias"):
        restore_optimizer(model, make_optimizer(model, "adamw", 0.01, 0.0), tmp_path)
