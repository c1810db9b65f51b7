"""A causal language model as one ONNX graph, its key-value cache among its inputs and outputs."""

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveUnusedNodesPass,
)
from onnxscript.optimizer import fold_constants_ir
from transformers import PreTrainedModel

from llmtune.export.graphs.cached_step import CachedStep, input_names, output_names, sample_inputs

OPSET = 18
"""Read by every onnxruntime and onnxruntime-web since 2023."""
MAX_SINGLE_FILE_BYTES = 1_900_000_000
"""Weights that stay in the graph's own file; a protobuf ends at 2 GiB."""
DATA_SUFFIX = "_data"
"""Of the file that holds larger weights, as transformers.js looks for it."""
_BATCH, _NEW, _PAST, _TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
_FOLDED_ELEMENTS = 4096
"""What is computed once while writing is at most this large, so that no weight is."""


def step_graph(model: PreTrainedModel) -> ir.Model:
    """The graph of `CachedStep(model)`, float32; its weights are the model's own tensors and not copied.

    Args:
        model: float32 model on the CPU in evaluation mode, its attention `sdpa` or `eager`.
    """
    with _quiet(), _no_garbage_collection():
        graph = _traced(model)
        fold_constants_ir(
            graph, input_size_limit=_FOLDED_ELEMENTS, output_size_limit=_FOLDED_ELEMENTS, should_fold=_is_small_work
        )
        _products_of_constants(graph.graph)
        for one in (
            IdentityEliminationPass(),
            CommonSubexpressionEliminationPass(),
            LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            RemoveUnusedNodesPass(),
            ClearMetadataAndDocStringPass(),
            NameFixPass(),
        ):
            one(graph)
    _name_dimensions(graph.graph)
    return graph


def save_graph(graph: ir.Model, file: Path) -> None:
    """Write a graph with its weights: one file, or `<file>_data` beside it where they are too large for one."""
    ir.save(graph, file, external_data=None if is_single_file(graph) else file.name + DATA_SUFFIX)


def is_single_file(graph: ir.Model) -> bool:
    """Whether the weights fit into the graph's own file."""
    constants = (value.const_value for value in graph.graph.initializers.values())
    return sum(tensor.nbytes for tensor in constants if tensor is not None) <= MAX_SINGLE_FILE_BYTES


def _traced(model: PreTrainedModel) -> ir.Model:
    inputs = sample_inputs(model)
    num_layers = (len(inputs) - 3) // 2
    dynamic = torch.export.Dim.DYNAMIC
    past = tuple({0: dynamic, 2: dynamic} for _ in range(2 * num_layers))
    with torch.no_grad():
        program = torch.onnx.export(
            CachedStep(model).eval(),
            inputs,
            dynamo=True,
            input_names=input_names(num_layers),
            output_names=output_names(num_layers),
            dynamic_shapes=({0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}, past),
            opset_version=OPSET,
            optimize=False,  # its rewriting takes a quarter as long again, and onnxruntime does the same when it loads
            verbose=False,
        )
    assert program is not None
    return program.model


def _is_small_work(node: ir.Node) -> bool | None:
    """Transposed weights are stored below, and only where nothing else uses them."""
    return False if node.op_type == "Transpose" else None


def _products_of_constants(graph: ir.Graph) -> None:
    """Make every product with a weight a MatMul with a constant, which quantisers and fast kernels look for.

    A weight that is used in other ways as well, such as a tied output head, stays one weight under a Transpose.
    """
    for node in list(graph):
        if node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]:
            _store_transposed(graph, node)
    for node in list(graph):
        if node.op_type == "Gemm":
            _gemm_as_product(graph, node)


def _store_transposed(graph: ir.Graph, node: ir.Node) -> None:
    weight = node.inputs[0]
    assert weight is not None
    tensor = weight.const_value
    if tensor is None or weight.name is None or len(weight.uses()) != 1:
        return
    columns, rows = tensor.numpy().shape

    def transposed() -> ir.Tensor:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().T))

    stored = ir.LazyTensor(transposed, dtype=tensor.dtype, shape=ir.Shape([rows, columns]), name=weight.name)
    new = ir.Value(name=weight.name, shape=stored.shape, type=ir.TensorType(tensor.dtype), const_value=stored)
    ir.convenience.replace_all_uses_with(node.outputs[0], new)
    graph.remove(node, safe=True)
    graph.initializers.pop(weight.name)
    graph.register_initializer(new)


def _gemm_as_product(graph: ir.Graph, node: ir.Node) -> None:
    """GPT-2's layers: x @ w + b."""
    attributes = node.attributes
    if any(name in attributes and attributes[name].value != plain for name, plain in _PLAIN_GEMM.items()):
        return
    left, right, bias = node.inputs
    product = ir.node("MatMul", [left, right])
    total = ir.node("Add", [product.outputs[0], bias])
    total.outputs[0].dtype = product.outputs[0].dtype = ir.DataType.FLOAT
    total.outputs[0].shape = node.outputs[0].shape
    graph.insert_before(node, [product, total])
    ir.convenience.replace_all_uses_with(node.outputs[0], total.outputs[0])
    graph.remove(node, safe=True)


_PLAIN_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def _name_dimensions(graph: ir.Graph) -> None:
    """Say which dimensions vary, in optimum's words, and drop the tracer's names inside."""
    outputs = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape = None
    for value in (*graph.inputs, *graph.outputs):
        name = (value.name or "").split(".")[0]
        sizes: list[Any] = list(value.shape or ())
        for axis, length in _LENGTHS[name].items():
            sizes[axis] = length
        value.shape = ir.Shape(sizes)


_LENGTHS = {
    "input_ids": {0: _BATCH, 1: _NEW},
    "attention_mask": {0: _BATCH, 1: _TOTAL},
    "position_ids": {0: _BATCH, 1: _NEW},
    "past_key_values": {0: _BATCH, 2: _PAST},
    "logits": {0: _BATCH, 1: _NEW},
    "present": {0: _BATCH, 2: _TOTAL},
}
"""Axes that vary, by the first part of a name."""


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter says much that its user can't act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Tracing makes millions of small objects that all stay until its end; looking through them takes a tenth of it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
