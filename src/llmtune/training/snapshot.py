"""A run at one step: what a checkpoint holds, kept apart from the training that goes on."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from llmtune.training.optimizer_state import OptimizerState, optimizer_state
from llmtune.training.parts import TrainParts, TrainState

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from."""

    step: int
    """Steps done."""
    save_weights: Callable[[Path], None]
    """Writes the trained weights to a folder."""
    optimizer: OptimizerState
    state: dict[str, Any]
    """The fields of `TrainState`, but for `should_stop`; plain values."""
    scaler: dict[str, Any] | None
    """State of the loss scaler; None without one."""


def take_snapshot(parts: TrainParts, state: TrainState, *, copied: bool = False) -> Snapshot:
    """The run as it stands.

    Args:
        parts: model, method, optimizer and scaler.
        state: how far the run has come.
        copied: whether every tensor is copied to the host's memory, so that training may go on before the snapshot is
            written; otherwise it holds the model's own.
    """
    weights, optimizer = parts.method.weights(parts.model), optimizer_state(parts.model, parts.optimizer)
    if copied:
        copies: dict[tuple[Any, ...], torch.Tensor] = {}
        weights = {name: _copied(tensor, copies) for name, tensor in weights.items()}
        tensors = {name: _copied(tensor, copies) for name, tensor in optimizer.tensors.items()}
        optimizer = OptimizerState(tensors, optimizer.described)
    return Snapshot(
        step=state.global_step,
        save_weights=partial(parts.method.save, parts.model, weights=weights),
        optimizer=optimizer,
        state={key: value for key, value in asdict(state).items() if key != "should_stop"},
        scaler=None if parts.scaler is None else parts.scaler.state_dict(),
    )


def num_bytes(parts: TrainParts, optimizer_bytes: float = 0.0) -> int:
    """Bytes of a checkpoint's tensors.

    Args:
        parts: what trains, and the optimizer with its state.
        optimizer_bytes: bytes of optimizer state a trainable weight, for weights that have none yet.
    """
    total = 0.0
    for parameter in parts.trainable:
        state = parts.optimizer.state.get(parameter, {})
        total += _size_of([parameter, *state.values()])
        total += 0 if state else parameter.numel() * optimizer_bytes
    return math.ceil(total)


def copy_fits(size: int) -> bool:
    """Whether the host has the memory for a copy of `size` bytes, with as much to spare for the training itself."""
    return 2 * size <= _available_memory()


def _available_memory() -> int:
    """Bytes of the host's memory that may still be taken, within the limit of a container (cgroup v2)."""
    available = psutil.virtual_memory().available
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return available
    if not limit.isdigit():
        return available
    return min(available, int(limit) - int(used) + int(statistics.get("inactive_file", 0)))


def _size_of(values: Iterable[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def _copied(tensor: torch.Tensor, copies: dict[tuple[Any, ...], torch.Tensor]) -> torch.Tensor:
    """A copy on the host; the same one for tensors that share their memory, as tied weights do."""
    place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
    if place not in copies:
        copies[place] = tensor.detach().to("cpu", copy=True)
    return copies[place]
