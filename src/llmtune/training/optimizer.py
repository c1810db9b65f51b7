"""Optimizers by name, with weight decay on matrices only, and updates that a flag on the device withholds."""

from collections.abc import Sequence
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import nn
from transformers.optimization import Adafactor

from llmtune.config.train import OptimizerName
from llmtune.training.parts import Touched

_FUSED_DEVICES = ("cpu", "cuda")


def make_optimizer(model: nn.Module, name: OptimizerName, learning_rate: float, weight_decay: float) -> Any:
    """The optimizer `name` over the model's trainable parameters.

    Parameters with two or more dimensions decay; biases and norms don't. Decay is decoupled from the gradient under
    every name (https://arxiv.org/abs/1711.05101).

    `adafactor` is transformers' with the learning rate taken as it is. torch's own multiplies it by each parameter's
    root mean square, which leaves adapters that start at 0 where they are.

    Args:
        model: its parameters with `requires_grad` are trained.
        name: which optimizer.
        learning_rate: first rate; the loop sets each step's.
        weight_decay: share of a weight, times the learning rate, that a step takes off; 0 turns it off.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        fused = all(p.device.type in _FUSED_DEVICES for p in trainable)
        return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    if name == "adafactor":
        return Adafactor(groups, lr=learning_rate, scale_parameter=False, relative_step=False, warmup_init=False)
    if name == "sgd":
        return _sgd(groups, learning_rate)
    classes = {
        "adamw_8bit": bnb.optim.AdamW8bit,
        "paged_adamw_8bit": bnb.optim.PagedAdamW8bit,
        "lion": bnb.optim.Lion,
    }
    return classes[name](groups, lr=learning_rate)


def update_weights(optimizer: Any, withheld: torch.Tensor, *, may_wait: bool = False) -> list[Touched]:
    """Make the optimizer's update, or leave weights and state bit for bit as they are where `withheld` is 1.

    torch's fused kernels take the flag themselves. bitsandbytes waits for the device after each parameter, so there the
    host looks at the flag first. Others go one parameter after the other, a copy of which, and of its state, is put
    back under the flag: the host doesn't wait, and the most memory is that of the largest parameter.

    Args:
        optimizer: from `make_optimizer`.
        withheld: float32 scalar on the device, 0 or 1.
        may_wait: whether an optimizer that counts its updates on the host may ask the device, as torch's loss scaler
            does. Needed where training goes on after a withheld update; otherwise see `forget_withheld`.

    Returns:
        The parameters that it went over.
    """
    touched = [
        Touched(parameter, is_fresh=not optimizer.state.get(parameter))
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = withheld
        optimizer.step()
    elif not waits_for_device(optimizer, may_wait=may_wait):
        _update_masked(optimizer, withheld)
    elif bool(withheld):
        return []
    else:
        optimizer.step()
    return touched


def waits_for_device(optimizer: Any, *, may_wait: bool) -> bool:
    """Whether the host waits for the device in each update that `update_weights` makes.

    Args:
        optimizer: from `make_optimizer`.
        may_wait: as given there.
    """
    return not optimizer.defaults.get("fused") and (may_wait or isinstance(optimizer, Optimizer8bit))


def forget_withheld(optimizer: Any, touched: Sequence[Touched]) -> None:
    """Take a withheld update out of what the host keeps: its count of updates, and state that began with it."""
    for entry in touched:
        state = optimizer.state.get(entry.parameter, {})
        if entry.is_fresh:
            optimizer.state.pop(entry.parameter, None)
        else:
            state.update({name: value - 1 for name, value in state.items() if isinstance(value, int)})


@torch.no_grad()
def _update_masked(optimizer: Any, withheld: torch.Tensor) -> None:
    groups = optimizer.param_groups
    try:
        for group in groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                optimizer.param_groups = [{**group, "params": [parameter]}]
                _step_masked(optimizer, parameter, withheld)
    finally:
        optimizer.param_groups = groups


def _step_masked(optimizer: Any, parameter: nn.Parameter, withheld: torch.Tensor) -> None:
    """Update the only parameter that the optimizer has now."""
    state = optimizer.state.get(parameter, {})
    before = {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
    weight = parameter.clone()
    optimizer.step()
    for now, old in [(parameter, weight), *((optimizer.state[parameter][name], old) for name, old in before.items())]:
        now.copy_(torch.where(withheld.to(now.device) > 0, old, now))


def _sgd(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, its decay applied to the weights instead of added to the gradient as torch does."""
    decayed = [{**group, "decoupled_decay": group["weight_decay"], "weight_decay": 0.0} for group in groups]
    optimizer = torch.optim.SGD(decayed, lr=learning_rate, momentum=0.9)

    def decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for group in optimizer.param_groups:
                with_gradient = [p for p in group["params"] if p.grad is not None]
                if group["decoupled_decay"] and with_gradient:
                    torch._foreach_mul_(with_gradient, 1 - group["lr"] * group["decoupled_decay"])

    optimizer.register_step_pre_hook(decay)
    return optimizer
