"""Optimizers by name, with weight decay on matrices only."""

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers.optimization import Adafactor

from llmtune.config.train import OptimizerName

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
