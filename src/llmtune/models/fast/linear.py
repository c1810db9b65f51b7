"""Linear layers that share an input, computed as one product, with the adapters that lie on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import bitsandbytes.functional as bnb
import torch
from torch import nn

from llmtune.models.fast.copies import Copies
from llmtune.models.fast.layers import Adapter, Layer, UnknownPart


class Backward(NamedTuple):
    """What goes back through a group from the gradient of its results."""

    of_input: torch.Tensor
    """[T, K]; without the adapters' part where that is apart."""
    of_dropped: torch.Tensor | None
    """[T, K]: the adapters' part, of the input after dropout; None where nothing is dropped."""
    of_inner: torch.Tensor | None
    """[T, sum of ranks]: of the adapters' inner values; None without adapters."""


@dataclass(frozen=True)
class _Slot:
    """Where a parameter that trains stands in the group."""

    parameter: nn.Parameter
    kind: str
    """`weight`, `bias`, `a` or `b`."""
    place: tuple[slice, ...]
    """Its part of the merged tensor."""


class LinearGroup:
    """Layers with the same input as one product x Wᵀ + scale × (x Aᵀ) Bᵀ; their results lie side by side.

    Weights in the products' type are moved into one block of memory, of which the model's own parameters become parts,
    so nothing is held twice. Others (float32 weights under 16-bit products, adapters) get a copy in the products' type,
    see `Copies`. 4-bit weights stay as they are and are widened for as long as a product takes, each layer's by
    bitsandbytes itself.

    Args:
        layers: with the same input.
        dtype: of the products.
        copies: gets what is held in another type than it multiplies in.

    Raises:
        UnknownPart: some layers are in 4 bits and others not, or their adapters differ in scale or dropout.
    """

    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype, copies: Copies) -> None:
        if len({layer.is_quantised for layer in layers}) > 1:
            raise UnknownPart("only some of the layers with one input are in 4 bits")
        self.sizes = [layer.base.out_features for layer in layers]
        """Features of each layer's result."""
        self._layers, self._dtype, self._copies = layers, dtype, copies
        self._slots: list[_Slot] = []
        self._weight = None if layers[0].is_quantised else self._merged_weights()
        self._bias = self._merged_biases()
        self._scale, self.dropout = self._scale_and_dropout()
        self._a, self._b = self._merged_adapters()

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that train, in the order of `parameter_gradients`."""
        return [slot.parameter for slot in self._slots]

    def forward(self, x: torch.Tensor, dropped: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The layers' results for x [T, K] side by side, [T, N], and the adapters' inner values [T, sum of ranks].

        Args:
            x: in the products' type.
            dropped: x after dropout, for the adapters; None where nothing is dropped.
        """
        weight = self._wide_weight()
        out = x @ weight.t() if self._bias is None else torch.addmm(self._bias, x, weight.t())
        if self._a is None or self._b is None:
            return out, None
        inner = (x if dropped is None else dropped) @ self._a.t()
        return out.addmm_(inner, self._b.t(), alpha=self._scale), inner

    def backward(self, upstream: torch.Tensor, *, dropped: bool) -> Backward:
        """From the gradient of the results [T, N] to that of the input.

        Args:
            upstream: in the products' type.
            dropped: whether `forward` got an input after dropout.
        """
        of_input = upstream @ self._wide_weight()
        if self._a is None or self._b is None:
            return Backward(of_input, None, None)
        of_inner = self._scaled(upstream, self._b)
        if dropped:
            return Backward(of_input, of_inner @ self._a, of_inner)
        return Backward(of_input.addmm_(of_inner, self._a), None, of_inner)

    def parameter_gradients(
        self, upstream: torch.Tensor, x: torch.Tensor, inner: torch.Tensor | None, of_inner: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Gradients of `trained`, each in its parameter's type.

        Args:
            upstream: of the results, [T, N].
            x: the input [T, K], after dropout where the adapters drop.
            inner: from `forward`.
            of_inner: from `backward`.
        """
        types = {slot.kind: slot.parameter.dtype for slot in self._slots}
        whole: dict[str, torch.Tensor] = {}
        if "weight" in types:
            whole["weight"] = upstream.t() @ x
        if "bias" in types:
            whole["bias"] = upstream.sum(0)
        if inner is not None and of_inner is not None and "a" in types:
            whole["a"] = of_inner.t() @ x
            whole["b"] = self._scaled(upstream.t(), inner)
        typed = {kind: gradient.to(types[kind]) for kind, gradient in whole.items()}
        return [typed[slot.kind][slot.place] for slot in self._slots]

    def _scaled(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Scale × left right, in one product."""
        return torch.addmm(left.new_zeros(()), left, right, beta=0, alpha=self._scale)

    def _wide_weight(self) -> torch.Tensor:
        """[N, K] in the products' type."""
        if self._weight is not None:
            return self._weight
        first = self._layers[0].base
        wide = torch.empty(sum(self.sizes), first.in_features, dtype=self._dtype, device=first.weight.device)
        for layer, part in zip(self._layers, wide.split(self.sizes), strict=True):
            weight: Any = layer.base.weight
            if wide.is_cuda and weight.quant_state.dtype == self._dtype:  # on a CPU it can't write into another's
                bnb.dequantize_4bit(weight.data, weight.quant_state, out=part)
            else:
                part.copy_(bnb.dequantize_4bit(weight.data, weight.quant_state))
        return wide

    def _merged_weights(self) -> torch.Tensor:
        weights: list[Any] = [layer.base.weight for layer in self._layers]
        return self._merge(weights, "weight")

    def _merged_biases(self) -> torch.Tensor | None:
        biases: list[Any] = [layer.base.bias for layer in self._layers]
        if all(bias is None for bias in biases):
            return None
        if any(bias is None for bias in biases):
            raise UnknownPart("only some of the layers with one input have a bias")
        return self._merge(biases, "bias")

    def _merge(self, parameters: Sequence[nn.Parameter], kind: str) -> torch.Tensor:
        """The parameters one after another in the products' type: moved there where they have it, else copied."""
        shape = (sum(self.sizes), *parameters[0].shape[1:])
        whole = torch.empty(shape, dtype=self._dtype, device=parameters[0].device)
        start = 0
        for parameter, part in zip(parameters, whole.split(self.sizes), strict=True):
            place = slice(start, start + part.shape[0])
            start = place.stop
            if parameter.dtype == self._dtype:
                part.copy_(parameter.data)
                parameter.data = part
                self._copies.add_moved(parameter)
            else:
                self._copies.add(parameter, part)
            if parameter.requires_grad:
                self._slots.append(_Slot(parameter, kind, (place,)))
        return whole

    def _scale_and_dropout(self) -> tuple[float, float]:
        found = {(adapter.scale, adapter.dropout) for adapter in self._adapters}
        if len(found) > 1:
            raise UnknownPart("adapters with the same input differ in scale or dropout")
        return next(iter(found), (1.0, 0.0))

    @property
    def _adapters(self) -> list[Adapter]:
        return [layer.adapter for layer in self._layers if layer.adapter is not None]

    def _merged_adapters(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """A of all layers one below another [sum of ranks, K], and their B along a diagonal [N, sum of ranks]."""
        if not self._adapters:
            return None, None
        ranks = [adapter.a.shape[0] for adapter in self._adapters]
        like = self._adapters[0].a
        a = torch.empty(sum(ranks), like.shape[1], dtype=self._dtype, device=like.device)
        b = torch.zeros(sum(self.sizes), sum(ranks), dtype=self._dtype, device=like.device)
        row = column = 0
        for layer, size in zip(self._layers, self.sizes, strict=True):
            if layer.adapter is not None:
                rank = layer.adapter.a.shape[0]
                inner, rows = slice(column, column + rank), slice(row, row + size)
                self._add(layer.adapter.a, "a", a, (inner,))
                self._add(layer.adapter.b, "b", b, (rows, inner))
                column += rank
            row += size
        return a, b

    def _add(self, parameter: nn.Parameter, kind: str, whole: torch.Tensor, place: tuple[slice, ...]) -> None:
        self._copies.add(parameter, whole[place])
        if parameter.requires_grad:
            self._slots.append(_Slot(parameter, kind, place))
