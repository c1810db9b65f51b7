"""The one forward pass that training and evaluation share: a loss for each supervised token, or the sum of them."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import nn

from llmtune.models.attention import underlying_model
from llmtune.models.chunked_loss import (
    OutputHead,
    chunked_cross_entropy,
    chunked_cross_entropy_sum,
    output_head,
)
from llmtune.models.fast.decoder import final_hidden_states

CHUNKED = "chunked cross-entropy"
WHOLE = "the model's own logits"
_PROBE_TOKENS = 24
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class LossChoice:
    """How the losses of a model's tokens are computed."""

    name: str
    """`CHUNKED` or `WHOLE`."""
    reason: str
    """Why, in words."""


_CHOICES: "weakref.WeakKeyDictionary[nn.Module, LossChoice]" = weakref.WeakKeyDictionary()


class TokenInputs(TypedDict):
    """What a forward pass takes beside the model."""

    input_ids: torch.Tensor
    """int64 [B, T]."""
    position_ids: torch.Tensor
    """int64 [B, T], from 0 in each example."""
    attention_mask: torch.Tensor | None
    """[B, T], false at padding on the right; None for a packed row."""
    lengths: Sequence[int]
    """Tokens of each example; packed: B = 1 and they add up to T; padded: one a row."""
    supervised: tuple[torch.Tensor, torch.Tensor]
    """int64 [N] each: flat index b × T + t of each supervised token, in order, and the token itself; none of them an
    example's first, which nothing predicts."""


@torch.no_grad()
def token_losses(model: nn.Module, **inputs: Unpack[TokenInputs]) -> torch.Tensor:
    """Cross-entropy of each supervised token given those before it in the same example; `token_loss_sum` has gradients.

    Position t - 1 predicts the token at t. Only positions that predict a supervised token are projected to the
    vocabulary, where `choose_loss` says so a chunk at a time. Nothing here asks the device for a value, but for padded
    rows of a model that computes its logits itself.

    Args:
        model: a causal language model, perhaps wrapped.
        **inputs: the tokens.

    Returns:
        [N] float32 (float64 for a model in float64), nats, without a gradient.
    """
    predicted, targets = inputs["supervised"]
    if predicted.numel() == 0:
        return torch.zeros(0, dtype=torch.float32, device=predicted.device)
    head = _head_by_chunks(model)
    if head is None:
        return _whole_losses(model, _forward_inputs(inputs), predicted - 1, targets)
    return chunked_cross_entropy(_hidden_states(model, _forward_inputs(inputs), predicted - 1), head, targets)


def token_loss_sum(model: nn.Module, **inputs: Unpack[TokenInputs]) -> torch.Tensor | None:
    """The sum of what `token_losses` gives, in the same way.

    Args:
        model: a causal language model, perhaps wrapped.
        **inputs: the tokens.

    Returns:
        A float64 scalar, nats, differentiable once where the model is; None where no token is supervised.
    """
    predicted, targets = inputs["supervised"]
    if predicted.numel() == 0:
        return None
    head = _head_by_chunks(model)
    if head is None:
        return _whole_losses(model, _forward_inputs(inputs), predicted - 1, targets).sum(dtype=torch.float64)
    return chunked_cross_entropy_sum(_hidden_states(model, _forward_inputs(inputs), predicted - 1), head, targets)


def choose_loss(model: nn.Module) -> LossChoice:
    """How `token_losses` computes this model's losses: decided once, by its numbers, and kept until `set_loss`.

    Where the model's head is a plain linear layer, a short random row goes through the model both ways, dropout off:
    losses and the gradient of what trains must agree. Products are taken in autocast's type where it is on.

    Args:
        model: a causal language model, perhaps wrapped.
    """
    inner = underlying_model(model)
    choice = _CHOICES.get(inner)
    if choice is None:
        head = output_head(model)
        fault = head if isinstance(head, str) else _chunking_fault(model, head)
        agrees = LossChoice(CHUNKED, "a chunk of positions at a time gives the same numbers as all of their logits")
        choice = _CHOICES[inner] = agrees if fault is None else LossChoice(WHOLE, fault)
    return choice


def set_loss(model: nn.Module, name: str) -> None:
    """Fix how `token_losses` computes this model's losses, as a run began that now goes on.

    Raises:
        ValueError: the name is none of `CHUNKED` and `WHOLE`, or the model can't be computed by chunks.
    """
    if name not in (CHUNKED, WHOLE):
        raise ValueError(f"{name!r} is no way to compute losses; there are {CHUNKED!r} and {WHOLE!r}")
    head = output_head(model)
    if name == CHUNKED and isinstance(head, str):
        raise ValueError(f"the losses can't be computed by chunks: {head}")
    _CHOICES[underlying_model(model)] = LossChoice(name, "fixed before")


def _head_by_chunks(model: nn.Module) -> OutputHead | None:
    """The head whose logits are computed a chunk at a time; None where the model computes them."""
    head = output_head(model)
    return head if isinstance(head, OutputHead) and choose_loss(model).name == CHUNKED else None


def _forward_inputs(inputs: TokenInputs) -> dict[str, Any]:
    """The model's own arguments."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    borders = _borders(inputs["lengths"], ids.device) if mask is None else {}
    return {"input_ids": ids, "attention_mask": mask, "position_ids": inputs["position_ids"], **borders}


def _borders(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """The forward arguments by which a packed row's examples are kept apart, named as flash attention's."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device, non_blocking=True)
    longest = max(lengths)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _whole_losses(
    model: nn.Module, inputs: dict[str, Any], predictors: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Losses [N] out of the logits of every column that predicts something."""
    num_rows, num_columns = inputs["input_ids"].shape
    if num_rows == 1:
        kept, column_of = predictors, torch.arange(predictors.numel(), device=predictors.device)
    else:
        kept, column_of = torch.unique(predictors % num_columns, return_inverse=True)
    logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits
    if logits.shape[1] != kept.numel():
        logits = logits[:, kept]  # a model without logits_to_keep projects every position
    chosen = logits[predictors // num_columns, column_of]
    wide = chosen if chosen.dtype == torch.float64 else chosen.float()
    return F.cross_entropy(wide, targets, reduction="none")


def _hidden_states(model: nn.Module, inputs: dict[str, Any], predictors: torch.Tensor) -> torch.Tensor:
    """[N, D] of the positions that predict something."""
    hidden = final_hidden_states(model, inputs)
    return hidden.reshape(-1, hidden.shape[-1])[predictors]


def _chunking_fault(model: nn.Module, head: OutputHead) -> str | None:
    """What is wrong with losses by chunks for this model; None where nothing is."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(any(p.requires_grad for p in model.parameters())):
            return _compare(model, head)
    except (NotImplementedError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    finally:
        model.train(was_training)


def _compare(model: nn.Module, head: OutputHead) -> str | None:
    device = head.weight.device
    row = torch.randint(0, head.weight.shape[0], (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(7))
    row, positions = row.to(device), torch.arange(_PROBE_TOKENS, device=device)[None]
    inputs = {"input_ids": row, "attention_mask": None, "position_ids": positions}
    predictors, targets = positions[0, :-1], row[0, 1:]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tolerance = _TOLERANCE[_coarsest(model, device)]

    expected = _whole_losses(model, inputs, predictors, targets)
    gradients = _gradients(expected.sum(), trainable)
    expected = expected.detach()
    hidden = _hidden_states(model, inputs, predictors)
    total = chunked_cross_entropy_sum(hidden, head, targets)
    apart = [
        chunked_cross_entropy(hidden, head, targets) - expected,
        (total.detach() - expected.sum()) / expected.numel(),
    ]
    if not all(float(losses.abs().max()) <= tolerance * float(expected.abs().max()) for losses in apart):
        return "losses by chunks differ from the model's own"
    apart = [ours.sub_(theirs) for ours, theirs in zip(_gradients(total, trainable), gradients, strict=True)]
    if apart and not float(nn.utils.get_total_norm(apart)) <= tolerance * float(nn.utils.get_total_norm(gradients)):
        return "gradients by chunks differ from the model's own"
    return None


def _gradients(loss: torch.Tensor, parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """Zeros where a parameter has no part in it."""
    return list(torch.autograd.grad(loss, parameters, materialize_grads=True)) if parameters else []


def _coarsest(model: nn.Module, device: torch.device) -> torch.dtype:
    """The coarsest type in play, of products and of weights; it decides how far sums may differ."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.dtype in _TOLERANCE}
    if torch.is_autocast_enabled(device.type):
        types.add(torch.get_autocast_dtype(device.type))
    return max(types, key=lambda dtype: _TOLERANCE[dtype])
