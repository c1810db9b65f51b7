"""A model whose memory is short: a pass over too many positions raises what a device raises."""

from typing import Any

import torch

from llmtune.models.attention import underlying_model
from llmtune.models.fast.decoder import decoder_of


class ShortMemory:
    """Raises torch's out-of-memory error in a forward or backward pass of more than `limit` positions.

    Args:
        model: the model.
        limit: positions; None for none.
        recomputing: limit while activations are computed again in the backward pass; None for the same.
        backward: raise in the backward pass instead of the forward one.
    """

    def __init__(
        self, model: torch.nn.Module, limit: int | None, *, recomputing: int | None = None, backward: bool = False
    ) -> None:
        self.limit = limit
        self.passes: list[int] = []
        self._recomputing = recomputing
        self._inner: Any = underlying_model(model)
        self._backward = backward
        self._inner.get_input_embeddings().register_forward_hook(self._embedded)

    def _embedded(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        positions = inputs[0].numel()
        self.passes.append(positions)
        limit = self.limit
        if limit is not None and self._recomputing is not None and _recomputes(self._inner):
            limit = self._recomputing
        if limit is None or positions <= limit or not self._inner.training:
            return None
        if not self._backward:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        tracked = output if output.requires_grad else output.detach().requires_grad_()
        tracked.register_hook(_fail)
        return tracked


def _fail(gradient: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _recomputes(model: torch.nn.Module) -> bool:
    decoder = decoder_of(model)
    if decoder is not None:
        return decoder.recompute == "blocks"
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
