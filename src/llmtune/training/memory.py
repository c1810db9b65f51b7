"""How much memory a training run is likely to need, before it begins.

What a layer keeps for the backward pass was listed with `torch.autograd.graph.saved_tensors_hooks` on a Llama of 30
layers, and the estimate held against the growth of a CPU process (135M parameters; 512, 1,024 and 2,048 tokens; LoRA
and full; bf16 and fp32): 0.77 to 1.25 of what was measured.
"""

from dataclasses import dataclass

import psutil
import torch
from torch import nn

from llmtune.config.train import OptimizerName

_GIB = 2**30
_NORM_INPUTS = 2
"""A layer's two norms each keep the residual stream, in the type of the weights."""
_ATTENTION_TENSORS = 4
"""Query, key, value (repeated to all heads) and output; scores aren't stored."""
_MLP_TENSORS = 3
"""Gate, activated gate and up projection."""
_LINEAR_INPUTS = 3
"""Inputs of hidden size that weight gradients need: attention's, its output projection's and the MLP's."""
_LOGITS_BYTES = 3 * 4
"""A logit at the height of the loss: cast to fp32, its log-softmax, and as much again for 16-bit copies or gradient."""

_FLOAT32_BYTES = 4
_OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1, "adafactor": 0.1, "lion": 4.0, "sgd": 4.0}
"""Bytes of optimizer state a parameter that trains in float32."""
_STATE_LIKE_WEIGHTS = ("adamw", "sgd")
"""Optimizers that hold their state in the type of the weights; the others' is the same whatever that is."""


def optimizer_bytes(name: OptimizerName, master_dtype: torch.dtype) -> float:
    """Bytes of optimizer state a trainable parameter.

    Args:
        name: `train.optimizer`.
        master_dtype: type of the weights that train.
    """
    share = master_dtype.itemsize / _FLOAT32_BYTES if name in _STATE_LIKE_WEIGHTS else 1.0
    return _OPTIMIZER_BYTES[name] * share


def mask_bytes(device: torch.device, compute_dtype: torch.dtype) -> int:
    """Bytes of dropout's mask an element: a CPU multiplies by it in the type that it computes in."""
    return compute_dtype.itemsize if device.type == "cpu" else 1


@dataclass(frozen=True)
class MemoryShape:
    """The sizes that decide what a training step holds."""

    num_parameters: int
    """Frozen and trainable ones."""
    num_trainable: int
    """Those that train."""
    frozen_bytes: float
    """Bytes a frozen parameter: 0.55 in 4 bits, 2 in bf16, 4 in fp32."""
    optimizer_bytes: float
    """Bytes of optimizer state a trainable parameter, see `optimizer_bytes`."""
    compute_bytes: int
    """Bytes an activation: 2 under bf16 and fp16, 4 under fp32."""
    hidden_size: int
    intermediate_size: int
    """Width of the MLP."""
    num_layers: int
    vocab_size: int
    adapter_inputs: int
    """Input features of all adapted linear layers of the model together; 0 where all weights train."""
    mask_bytes: int = 1
    """Bytes an input element of each adapter that dropout keeps, see `mask_bytes`."""
    master_bytes: int = _FLOAT32_BYTES
    """Bytes a trainable parameter, and its gradient: 4 in fp32, 2 in bf16."""


def estimate_memory(shape: MemoryShape, micro_batch_tokens: int, *, activation_checkpointing: bool = False) -> float:
    """Roughly what a device holds at the height of a step, in GiB.

    Weights (with the 16-bit copies that autocast makes of fp32 ones), plus gradient and optimizer state of what trains,
    plus what the layers keep for the backward pass, plus the logits of one micro-batch, as if every token were
    supervised. Allocator slack and the program itself aren't in it.

    Args:
        shape: sizes of model, method and optimizer.
        micro_batch_tokens: tokens of one micro-batch, padding included.
        activation_checkpointing: whether a layer keeps its input alone.
    """
    weights = (shape.num_parameters - shape.num_trainable) * shape.frozen_bytes
    trained = shape.num_trainable * (2 * shape.master_bytes + shape.optimizer_bytes)
    residual_bytes = _residual_bytes(shape)
    copies = shape.num_parameters * shape.compute_bytes if residual_bytes > shape.compute_bytes else 0
    layer = _layer_bytes(shape, residual_bytes)
    kept_input = shape.hidden_size * residual_bytes
    activations = layer + kept_input * shape.num_layers if activation_checkpointing else layer * shape.num_layers
    logits = shape.vocab_size * _LOGITS_BYTES
    return (weights + trained + copies + micro_batch_tokens * (activations + logits)) / _GIB


def adapter_inputs(model: nn.Module) -> int:
    """Input features of all linear layers that carry a LoRA adapter, added up; 0 without adapters."""
    return sum(weight.shape[1] for name, weight in model.named_parameters() if ".lora_A." in name)


def _residual_bytes(shape: MemoryShape) -> int:
    """Bytes an element of the residual stream: fp32 where the embeddings are, whatever autocast computes in."""
    embedding_bytes = shape.frozen_bytes if shape.adapter_inputs else shape.master_bytes
    return _FLOAT32_BYTES if embedding_bytes == _FLOAT32_BYTES else shape.compute_bytes


def _layer_bytes(shape: MemoryShape, residual_bytes: int) -> float:
    """What one layer keeps of each token for the backward pass."""
    hidden, mlp = shape.hidden_size, shape.intermediate_size
    norms = _NORM_INPUTS * hidden * residual_bytes
    products = (_ATTENTION_TENSORS * hidden + _MLP_TENSORS * mlp) * shape.compute_bytes
    if shape.adapter_inputs:
        inputs = shape.adapter_inputs / shape.num_layers * (shape.compute_bytes + shape.mask_bytes)
    else:  # a norm that trains also keeps its normalised input
        inputs = (_LINEAR_INPUTS * hidden + mlp) * shape.compute_bytes + norms
    return norms + products + inputs


def device_memory_gib(device: torch.device) -> float:
    """All memory of a GPU, or of the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / _GIB
    return psutil.virtual_memory().total / _GIB
