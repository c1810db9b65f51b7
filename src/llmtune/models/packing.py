"""Whether a model may train on packed rows: decided by its numbers, on a short row, at the start."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from llmtune.models.attention import VARLEN, VARLEN_KERNEL, attention_of, set_attention, underlying_model, varlen_attn
from llmtune.models.precision import Precision
from llmtune.models.token_loss import TokenInputs, token_loss_sum, token_losses

_LENGTHS = (9, 17, 6)
_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
_REACHES = {"sliding_window": "sliding window", "attention_chunk_size": "attention chunk"}
"""What a config calls the number of tokens that a layer attends to; a mask imposes it, which packed rows go without."""


@dataclass(frozen=True)
class AttentionChoice:
    """The attention implementation that a model was switched to."""

    name: str
    """transformers' name of it."""
    packed: bool
    """Whether examples may be laid end to end in one row."""
    reason: str
    """Why, in words."""


@dataclass(frozen=True)
class PackingNeeds:
    """What the run asks of the attention implementation."""

    attention: Literal["auto", "sdpa", "eager"]
    """`model.attention`."""
    packing: bool
    """`train.packing`."""
    max_seq_len: int
    """Longest example in tokens."""


def choose_attention(model: nn.Module, needs: PackingNeeds, precision: Precision) -> AttentionChoice:
    """Switch a model to the fastest attention implementation that computes the right numbers.

    Args:
        model: the model as it will train, perhaps in a PEFT wrapper; not yet in a data-parallel one.
        needs: what the run asks for.
        precision: how the run computes.
    """
    inner = underlying_model(model)
    if needs.attention != "auto":
        set_attention(model, needs.attention)
        return AttentionChoice(needs.attention, False, "asked for by model.attention: padded rows")
    plain = attention_of(model)
    if not needs.packing:
        return AttentionChoice(plain, False, "train.packing=false: padded rows")
    for key, words in _REACHES.items():
        reach = getattr(inner.config.get_text_config(), key, None)
        if reach and reach < needs.max_seq_len:
            why = f"the model's {words} ({reach} tokens) is shorter than data.max_seq_len={needs.max_seq_len}"
            return AttentionChoice(plain, False, f"{why}: padded rows")
    faults: list[str] = []
    for name in _candidates(next(model.parameters()).device, precision):
        fault = packing_fault(model, name, precision)
        if fault is None:
            passed_over = f"; not {', '.join(faults)}" if faults else ""
            return AttentionChoice(name, True, f"packed examples give the same numbers as each alone{passed_over}")
        faults.append(f"{name} ({fault})")
    return AttentionChoice(plain, False, f"padded rows, since packing isn't exact for this model: {', '.join(faults)}")


def packing_fault(model: nn.Module, name: str, precision: Precision) -> str | None:
    """What is wrong with packed rows under the attention implementation `name`; None where nothing is.

    Three random examples (32 tokens) go through the model packed, and each alone under the present implementation:
    losses and gradients of what trains must agree, and other tokens in one example must not move another's losses.
    On success the implementation stays switched on.
    """
    before, was_training = attention_of(model), model.training
    model.eval()
    fault = "it failed"
    try:
        fault = _compare(model, name, precision)
    except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        fault = str(error).splitlines()[0] if str(error) else type(error).__name__
    finally:
        if fault is not None:
            set_attention(model, before)
        model.train(was_training)
    return fault


def _candidates(device: torch.device, precision: Precision) -> list[str]:
    fast = device.type == "cuda" and precision.name != "fp32" and varlen_attn is not None
    return [VARLEN_KERNEL, VARLEN] if fast else [VARLEN]


def _compare(model: nn.Module, name: str, precision: Precision) -> str | None:
    tolerance = _TOLERANCE[_coarsest(model, precision)]
    vocabulary = underlying_model(model).config.get_text_config().vocab_size
    examples = [_random_tokens(number, length, vocabulary) for number, length in enumerate(_LENGTHS)]
    expected = torch.cat([_losses(model, [example], precision) for example in examples])
    gradients = [_gradient(model, [example], precision) for example in examples]
    set_attention(model, name)
    packed = _losses(model, examples, precision)
    scale = float(expected.abs().max())
    if not float((packed - expected).abs().max()) <= tolerance * scale:
        return f"losses differ by {float((packed - expected).abs().max()) / scale:.1e} of the largest"
    gradient = torch.stack(gradients).sum(0)
    if not float((_gradient(model, examples, precision) - gradient).norm()) <= tolerance * float(gradient.norm()):
        return "gradients differ"
    other = [_random_tokens(99, _LENGTHS[0], vocabulary), *examples[1:]]
    untouched = _LENGTHS[0] - 1
    moved = _losses(model, other, precision)
    if not float((moved[untouched:] - packed[untouched:]).abs().max()) <= tolerance * scale / 10:
        return "an example's losses depend on its neighbour's tokens"
    return None


def _losses(model: nn.Module, examples: list[torch.Tensor], precision: Precision) -> torch.Tensor:
    """Losses [N] of examples in one packed row."""
    with precision.autocast():
        return token_losses(model, **_packed_inputs(model, examples))


def _gradient(model: nn.Module, examples: list[torch.Tensor], precision: Precision) -> torch.Tensor:
    """The gradient of the sum of those losses: a fixed sample of each parameter's."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        return torch.zeros(1, device=next(model.parameters()).device)
    with torch.enable_grad():
        with precision.autocast():
            total = token_loss_sum(model, **_packed_inputs(model, examples))
        assert total is not None
        gradients = torch.autograd.grad(total, trainable, allow_unused=True)
    return torch.cat([gradient.reshape(-1)[:4096].float() for gradient in gradients if gradient is not None])


def _packed_inputs(model: nn.Module, examples: list[torch.Tensor]) -> TokenInputs:
    """The examples in one row, each token of them supervised but its first."""
    device = next(model.parameters()).device
    lengths = [example.numel() for example in examples]
    row = torch.cat(examples)[None].to(device)
    positions = torch.cat([torch.arange(length) for length in lengths])
    predicted = positions.nonzero().squeeze(1).to(device)
    return {
        "input_ids": row,
        "position_ids": positions[None].to(device),
        "attention_mask": None,
        "lengths": lengths,
        "supervised": (predicted, row[0, predicted]),
    }


def _coarsest(model: nn.Module, precision: Precision) -> str:
    """The coarsest type in play, of products and of weights; it decides how far sums may differ."""
    types = {parameter.dtype for parameter in model.parameters()} | {precision.compute_dtype}
    if torch.bfloat16 in types:
        return "bf16"
    return "fp16" if torch.float16 in types else "fp32"


def _random_tokens(number: int, length: int, vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + number)
    return torch.randint(0, vocabulary, (length,), generator=generator)
