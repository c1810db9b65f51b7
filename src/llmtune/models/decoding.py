"""Which decoder a model's packed rows take: its own, or the one for the Llama family where that gives its numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from llmtune.models.attention import VARLEN, VARLEN_KERNEL, attention_of, set_attention, underlying_model
from llmtune.models.fast.decoder import FastDecoder, decoder_of, products_dtype, use_decoder
from llmtune.models.fast.layers import UnknownPart
from llmtune.models.precision import Precision
from llmtune.models.token_loss import CHUNKED, choose_loss, token_loss_sum

Recomputed = Literal["gates", "blocks"]
"""What may be computed again in the backward pass, see `recompute_activations`."""
OWN = "transformers"
FAST = "llmtune"
_LENGTHS = (100, 57, 64)
"""Tokens of the examples that are compared: more than a block of any attention kernel."""
_ROWS = (128, 128)
"""Examples of one length, for which a GPU has another kernel."""
_FIRST_SEED = 11
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-3}
"""By which share loss and gradient norm may differ. transformers' norms are float32 in a float64 model too."""
_VECTOR_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 0.15}
"""By which share of its norm the gradient itself may: rounding turns it more than it stretches it."""
_TRIES = {torch.float16: 8, torch.bfloat16: 8}
"""Rows at most of which one has to agree. In 16 bits rounding alone moves a small deep model's gradient norm by 0.1
to 1 % (by 13 % on one of twelve rows of SmolLM2-135M), in its own pass as in llmtune's; an error moves every row's."""
_FILL = 0.02
"""Standard deviation of what stands in for adapters that start at zero, behind which the other half has no gradient."""


class _Row(NamedTuple):
    """Random tokens to compare on."""

    lengths: Sequence[int]
    """Of the examples in it."""
    seed: int


@dataclass(frozen=True)
class DecoderChoice:
    """How a model's final hidden states are computed."""

    name: str
    """`OWN` or `FAST`."""
    reason: str
    """Why, in words."""


def choose_decoder(
    model: nn.Module, wanted: Literal["auto", "transformers"], precision: Precision, *, packed: bool
) -> DecoderChoice:
    """Switch a model to the fastest decoder that gives its own loss and gradient.

    Short packed rows of random tokens go through both, dropout off, until one agrees. The model is left as it was, but
    that weights which are multiplied together may have moved in memory.

    Args:
        model: as it will train or be evaluated, its attention and loss chosen.
        wanted: `model.decoder`.
        precision: how the run computes.
        packed: whether the run's rows are packed.
    """
    use_decoder(model, None)
    if wanted == OWN:
        return DecoderChoice(OWN, "asked for by model.decoder")
    if not packed:
        return DecoderChoice(OWN, "llmtune's takes packed rows alone")
    with precision.autocast():
        loss = choose_loss(model)
    if loss.name != CHUNKED:
        return DecoderChoice(OWN, f"the model computes its own logits: {loss.reason}")
    found = decoder_fault(model, precision)
    if found is None:
        return DecoderChoice(FAST, "built like Llama; gives the model's own loss and gradient")
    return DecoderChoice(OWN, found)


def decoder_fault(model: nn.Module, precision: Precision) -> str | None:
    """Why a model can't take llmtune's decoder; None where it can, and has taken it."""
    was_training, fault = model.training, "it failed"
    model.eval()
    try:
        with precision.autocast():
            decoder = FastDecoder(model, products_dtype(model))
        with _filled_adapters(model):
            fault = _compare(model, decoder, precision)
    except (UnknownPart, NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        fault = str(error).splitlines()[0] if str(error) else type(error).__name__
    finally:
        if fault is not None:
            use_decoder(model, None)
        model.train(was_training)
    return fault


def _compare(model: nn.Module, decoder: FastDecoder, precision: Precision) -> str | None:
    """Switch to the decoder; what differs from the model's own forward pass, in words."""
    rows = [_LENGTHS, _ROWS] if attention_of(model) == VARLEN_KERNEL else [_LENGTHS]
    faults = (_agreeing_row(model, decoder, precision, lengths) for lengths in rows)
    return next((fault for fault in faults if fault is not None), None)


def _agreeing_row(model: nn.Module, decoder: FastDecoder, precision: Precision, lengths: Sequence[int]) -> str | None:
    """Look for a row on which both agree; how they differ on the last one where there is none."""
    fault, tries = None, _TRIES.get(decoder.dtype, 1)
    for number in range(tries):
        fault = _compare_row(model, decoder, precision, _Row(lengths, _FIRST_SEED + number))
        if fault is None:
            return None
    return fault if tries == 1 else f"{fault}, and by too much on {tries - 1} other rows"


def _compare_row(model: nn.Module, decoder: FastDecoder, precision: Precision, row: _Row) -> str | None:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    use_decoder(model, None)
    chosen = attention_of(model)
    set_attention(model, VARLEN)  # an example at a time, whichever kernel is chosen
    try:
        loss, gradient = _loss_and_gradient(model, trainable, precision, row)
    finally:
        set_attention(model, chosen)
    use_decoder(model, decoder)
    fast_loss, fast_gradient = _loss_and_gradient(model, trainable, precision, row)
    kind = decoder.dtype
    apart = abs(fast_loss - loss) / abs(loss)
    if not apart <= _TOLERANCE[kind]:
        return f"llmtune's decoder gives another loss, by {apart:.1e} of it"
    if not trainable:
        return None
    norm = _norm(gradient)
    if not norm:
        return "the model's own gradient is zero"
    stretched = abs(_norm(fast_gradient) - norm) / norm
    if not stretched <= _TOLERANCE[kind]:
        return f"llmtune's decoder gives another gradient norm, by {stretched:.1e} of it"
    turned = _norm([ours.sub_(theirs) for ours, theirs in zip(fast_gradient, gradient, strict=True)]) / norm
    if not turned <= _VECTOR_TOLERANCE[kind]:
        return f"llmtune's decoder gives another gradient, by {turned:.1e} of its norm"
    return None


def _loss_and_gradient(
    model: nn.Module, trainable: list[nn.Parameter], precision: Precision, row: _Row
) -> tuple[float, list[torch.Tensor]]:
    """The mean loss of a packed row, and its gradient."""
    device = next(model.parameters()).device
    vocabulary = underlying_model(model).config.get_text_config().vocab_size
    stream = torch.Generator().manual_seed(row.seed)
    tokens = torch.randint(0, vocabulary, (1, sum(row.lengths)), generator=stream).to(device)
    positions = torch.cat([torch.arange(length) for length in row.lengths])
    predicted = positions.nonzero().squeeze(1).to(device)  # all but each example's first
    with torch.inference_mode(False), torch.set_grad_enabled(bool(trainable)):
        with precision.autocast():
            total = token_loss_sum(
                model,
                input_ids=tokens,
                position_ids=positions[None].to(device),
                attention_mask=None,
                lengths=row.lengths,
                supervised=(predicted, tokens[0, predicted]),
            )
        assert total is not None, "tokens are supervised"
        mean = total / predicted.numel()
        gradients = torch.autograd.grad(mean, trainable, materialize_grads=True) if trainable else ()
    return float(mean), list(gradients)


def _norm(gradient: list[torch.Tensor]) -> float:
    """Summed in float32 at least, whatever the gradient's type."""
    squares = [
        torch.linalg.vector_norm(part, dtype=part.dtype if part.dtype == torch.float64 else torch.float32).square()
        for part in gradient
    ]
    return float(torch.stack(squares).sum().sqrt())


@contextmanager
def _filled_adapters(model: nn.Module) -> Iterator[None]:
    """Put small random numbers into trained matrices that are all zero; the zeros are back afterwards."""
    empty = [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and not bool(p.detach().any())]
    stream = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for parameter in empty:
            parameter.copy_(torch.randn(parameter.shape, generator=stream) * _FILL)
        try:
            yield
        finally:
            for parameter in empty:
                parameter.zero_()


def recompute_activations(model: nn.Module, what: Recomputed) -> None:
    """Compute activations again in the backward pass instead of keeping them.

    Args:
        model: to be trained.
        what: `gates` for a Llama block's widest ones alone, which llmtune's decoder can; `blocks` for all but each
            block's input. Non-reentrant checkpointing finds what needs gradients inside the block, so a frozen
            embedding needs no `enable_input_require_grads`.

    Raises:
        ValueError: the model can't.
    """
    decoder = decoder_of(model)
    if decoder is not None:
        decoder.recompute = what
        return
    if what == "gates":
        raise ValueError("the model's own decoder keeps all activations of a block or none")
    inner: Any = underlying_model(model)
    # renamed within transformers 5
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False})
