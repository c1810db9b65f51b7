"""An optimizer's state as safetensors and JSON, by parameter name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmtune.errors import RunError

_TENSORS = "optimizer.safetensors"
_SCALARS = "optimizer.json"
OPTIMIZER_FILES = (_TENSORS, _SCALARS)
"""What `save_optimizer` writes."""


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's state by parameter name."""

    tensors: dict[str, torch.Tensor]
    """By `<parameter>/<entry>`."""
    described: dict[str, Any]
    """The optimizer's class, its entries that are numbers, and the names of the tensors that lie on the host."""


def optimizer_state(model: nn.Module, optimizer: Any) -> OptimizerState:
    """The optimizer's own tensors, not copied. Rates and decays aren't state: config and schedule give them."""
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    on_host: list[str] = []
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            key = f"{name}/{entry}"
            if not isinstance(value, torch.Tensor):
                scalars[key] = value
                continue
            if value.device.type == "cpu" != parameter.device.type:
                on_host.append(key)
            tensors[key] = value.detach()
    return OptimizerState(tensors, {"optimizer": type(optimizer).__name__, "scalars": scalars, "on_host": on_host})


def save_optimizer(state: OptimizerState, folder: Path) -> None:
    """Write `optimizer.safetensors` and `optimizer.json`."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for key, value in state.tensors.items():
        tensors[key] = value.clone() if value.data_ptr() in seen else value.contiguous()  # a file holds no tensor twice
        seen.add(value.data_ptr())
    save_file(tensors, folder / _TENSORS)
    (folder / _SCALARS).write_text(json.dumps(state.described), encoding="utf-8")


def restore_optimizer(model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Put a saved state back, bit for bit.

    Raises:
        RunError: the state is another optimizer's, or of other parameters.
    """
    content = json.loads((folder / _SCALARS).read_text(encoding="utf-8"))
    if content["optimizer"] != type(optimizer).__name__:
        raise RunError(
            f"{folder} holds the state of {content['optimizer']}, but train.optimizer now makes "
            f"{type(optimizer).__name__}; go on with the optimizer that the run started with"
        )
    saved: dict[str, dict[str, Any]] = {}
    for key, value in [*content["scalars"].items(), *load_file(folder / _TENSORS).items()]:
        name, entry = key.rsplit("/", 1)
        saved.setdefault(name, {})[entry] = value
    names = {parameter: name for name, parameter in model.named_parameters()}
    trainable = {names[parameter] for group in optimizer.param_groups for parameter in group["params"]}
    if not set(saved) <= trainable:
        raise RunError(
            f"{folder} holds optimizer state of parameters that don't train here, such as "
            f"{min(set(saved) - trainable)}; go on with the method that the run started with"
        )
    for group_number, group in enumerate(optimizer.param_groups):
        for number, parameter in enumerate(group["params"]):
            name = names[parameter]
            if name not in saved:
                continue
            if hasattr(optimizer, "init_state"):  # bitsandbytes: gives paged buffers, which are filled below
                optimizer.init_state(group, parameter, group_number, number)
            host = {entry for entry in saved[name] if f"{name}/{entry}" in content["on_host"]}
            _fill(optimizer.state[parameter], saved[name], parameter, host)


def _fill(state: dict[str, Any], saved: dict[str, Any], parameter: nn.Parameter, on_host: set[str]) -> None:
    """Take over a parameter's saved entries, into the buffers that are there where they fit."""
    for entry, value in saved.items():
        present = state.get(entry)
        if not isinstance(value, torch.Tensor):
            state[entry] = value
        elif isinstance(present, torch.Tensor) and (present.shape, present.dtype) == (value.shape, value.dtype):
            present.copy_(value)
        else:
            state[entry] = value if entry in on_host else value.to(parameter.device)
