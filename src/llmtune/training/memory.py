"""How much memory a training run is likely to need, before it begins."""

from dataclasses import dataclass

import psutil
import torch

_GIB = 2**30
_ACTIVATION_BYTES = 34
"""Bytes a layer keeps of each token and hidden unit at 16 bits, attention scores not stored
(https://arxiv.org/abs/2205.05198, equation 2)."""

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1, "adafactor": 0.1, "lion": 4.0, "sgd": 4.0}
"""Bytes of optimizer state a trainable parameter, by `train.optimizer`."""


@dataclass(frozen=True)
class MemoryShape:
    """The sizes that decide what a training step holds."""

    num_parameters: int
    """Frozen and trainable ones."""
    num_trainable: int
    """Those that train, in fp32."""
    frozen_bytes: float
    """Bytes a frozen parameter: 0.55 in 4 bits, 2 in bf16, 4 in fp32."""
    optimizer_bytes: float
    """Bytes of optimizer state a trainable parameter, see `OPTIMIZER_BYTES`."""
    compute_bytes: int
    """Bytes an activation: 2 under bf16 and fp16, 4 under fp32."""
    hidden_size: int
    num_layers: int
    vocab_size: int


def estimate_memory(shape: MemoryShape, micro_batch_tokens: int, *, activation_checkpointing: bool = False) -> float:
    """Roughly what a device holds at the height of a step, in GiB.

    Weights, plus gradient and optimizer state of what trains, plus what the layers keep for the backward pass, plus
    the logits of one micro-batch in fp32 with their gradient, as if every token were supervised. Allocator slack and
    the program itself aren't in it.

    Args:
        shape: sizes of model, method and optimizer.
        micro_batch_tokens: tokens of one micro-batch, padding included.
        activation_checkpointing: whether a layer keeps its input alone.
    """
    weights = (shape.num_parameters - shape.num_trainable) * shape.frozen_bytes
    trained = shape.num_trainable * (4 + 4 + shape.optimizer_bytes)
    layer = micro_batch_tokens * shape.hidden_size * _ACTIVATION_BYTES * shape.compute_bytes / 2
    kept_inputs = micro_batch_tokens * shape.hidden_size * shape.compute_bytes * shape.num_layers
    activations = layer + kept_inputs if activation_checkpointing else layer * shape.num_layers
    logits = micro_batch_tokens * shape.vocab_size * 4 * 2
    return (weights + trained + activations + logits) / _GIB


def device_memory_gib(device: torch.device) -> float:
    """All memory of a GPU, or of the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / _GIB
    return psutil.virtual_memory().total / _GIB
