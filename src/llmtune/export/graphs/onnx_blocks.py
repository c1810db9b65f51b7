"""An ONNX graph's weights in 8 or 4 bits: blocks of 32 numbers of a row, each with a scale and a zero point of its own.

Products become `MatMulNBits` and the embedding `GatherBlockQuantized`: operators of onnxruntime, onnxruntime-web and
onnxruntime-genai. A weight that embedding and output head share stays one.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

BLOCK = 32
_DOMAIN = "com.microsoft"
_INT8_ACTIVATIONS = 4
"""`accuracy_level` at which a kernel may round activations to 8 bits, block by block; several times as fast."""
_ROWS_AT_ONCE = 1024
_DELICATE = ("v_proj", "down_proj", "mlp.c_proj")
_LEAST = np.float32(1e-30)
_SHARES = np.linspace(1.0, 0.8, 5, dtype=np.float32)
"""Of a block's range, tried in 4 bits: to cut off an outlier may bring the other numbers closer."""


@dataclass(frozen=True)
class Widths:
    """Bits a weight: 4 or 8."""

    layers: int
    ends: int
    """Of the embedding and the output head."""
    delicate: int
    """Of what 4 bits hurt most in a layer: attention's values, and the way out of the feed-forward part."""

    def of_layer(self, weight: str) -> int:
        """Bits of a layer's weight, by its name."""
        return self.delicate if any(part in weight for part in _DELICATE) else self.layers


@dataclass(frozen=True)
class _Blocks:
    """A matrix in blocks, as values of the graph."""

    codes: ir.Value
    """uint8 [rows, blocks, bytes a block], two codes a byte in 4 bits."""
    scales: ir.Value
    """float32 [rows, blocks]."""
    zeros: ir.Value
    """uint8 [rows, bytes for all blocks]: codes of 0."""
    bits: int
    shape: tuple[int, int]
    """Rows and columns of the matrix."""


def quantise(graph: ir.Model, widths: Widths) -> None:
    """Replace the float32 matrices of a graph, and the embedding.

    Args:
        graph: as `step_graph` makes it; changed in place.
        widths: bits a weight.
    """
    inner = graph.graph
    tokens, logits = inner.inputs[0], inner.outputs[0]
    head = _product_before(logits)
    made: dict[str, _Blocks] = {}
    for node in list(inner):
        if node.op_type == "MatMul":
            _quantise_product(inner, node, made, widths, is_head=node is head)
    for node in list(inner):
        if node.op_type == "Gather" and _source(node.inputs[1]) is tokens:
            _quantise_lookup(inner, node, made, widths.ends)
    graph.opset_imports[_DOMAIN] = 1
    used = {value for node in inner for value in node.inputs}
    for name in [name for name, value in inner.initializers.items() if value not in used]:
        inner.initializers.pop(name)


def blocks_of(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes uint8 [rows, blocks, 32], scales float32 [rows, blocks] and zero points uint8 [rows, blocks] of a matrix.

    A number is `scale * (code - zero)`. The last block of a row is filled up with zeros.
    """
    rows, columns = matrix.shape
    padded = np.pad(matrix.astype(np.float32, copy=False), ((0, 0), (0, -columns % BLOCK))).reshape(rows, -1, BLOCK)
    parts = [_rounded(padded[row : row + _ROWS_AT_ONCE], bits) for row in range(0, rows, _ROWS_AT_ONCE)]
    codes, scales, zeros = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    return codes, scales, zeros


def _rounded(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the scales and zero points tried, those with the least squared error in each block."""
    low, high, top = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0), 2**bits - 1
    best: list[np.ndarray] | None = None
    for share in _SHARES if bits == 4 else _SHARES[:1]:
        first = np.maximum((high - low) * (share / top), _LEAST)
        for rounding in (np.floor, np.ceil):
            zeros = np.clip(rounding(-low * share / first), 0, top)
            steps = _codes(blocks, first, zeros, top) - zeros[..., None]
            fitted = (steps * blocks).sum(-1) / np.maximum(np.square(steps).sum(-1), _LEAST)
            scales = np.where(fitted > 0, fitted, first)
            codes = _codes(blocks, scales, zeros, top)
            errors = np.square((codes - zeros[..., None]) * scales[..., None] - blocks).sum(-1)
            tried = [codes, scales, zeros, errors]
            if best is None:
                best = tried
                continue
            better = errors < best[3]
            for kept, new in zip(best, tried, strict=True):
                kept[better] = new[better]
    assert best is not None
    codes, scales, zeros, _ = best
    return codes.astype(np.uint8), scales.astype(np.float32), zeros.astype(np.uint8)


def _codes(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, top: int) -> np.ndarray:
    return np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, top)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis, in 4 bits two to a byte, the first one in its lower half."""
    if bits == 8:
        return codes
    even = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return even[..., ::2] | (even[..., 1::2] << 4)


def _quantise_product(
    graph: ir.Graph, node: ir.Node, made: dict[str, _Blocks], widths: Widths, *, is_head: bool
) -> None:
    """`x @ w`, or `x @ transposed(w)` of a weight that is used elsewhere as well."""
    left, right = node.inputs
    assert left is not None and right is not None
    turned = right.producer()
    weight = turned.inputs[0] if turned is not None and turned.op_type == "Transpose" else right
    matrix = _matrix(weight)
    if weight is None or matrix is None:
        return
    bits = widths.ends if is_head else widths.of_layer(str(weight.name))
    blocks = _stored(graph, made, weight, matrix.T if weight is right else matrix, bits)
    rows, columns = blocks.shape
    attributes = {
        "K": columns,
        "N": rows,
        "bits": blocks.bits,
        "block_size": BLOCK,
        "accuracy_level": _INT8_ACTIVATIONS,
    }
    new = ir.node(
        "MatMulNBits", [left, blocks.codes, blocks.scales, blocks.zeros], attributes=attributes, domain=_DOMAIN
    )
    _put(graph, node, [new])
    if turned is not None and not right.uses():
        graph.remove(turned, safe=True)


def _quantise_lookup(graph: ir.Graph, node: ir.Node, made: dict[str, _Blocks], bits: int) -> None:
    """Rows of the embedding; where its columns don't fill blocks it stays as it is."""
    weight, tokens = node.inputs
    matrix = _matrix(weight)
    if weight is None or matrix is None or matrix.shape[1] % BLOCK:
        return
    blocks = _stored(graph, made, weight, matrix, bits)
    flat = ir.Value(name=f"{weight.name}_flat", const_value=ir.tensor([0, -1], dtype=ir.DataType.INT64))
    graph.register_initializer(flat)
    rows = ir.node("Reshape", [blocks.codes, flat])
    attributes = {"bits": blocks.bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    inputs = [rows.outputs[0], tokens, blocks.scales, blocks.zeros]
    new = ir.node("GatherBlockQuantized", inputs, attributes=attributes, domain=_DOMAIN)
    _put(graph, node, [rows, new])


def _stored(graph: ir.Graph, made: dict[str, _Blocks], weight: ir.Value, matrix: np.ndarray, bits: int) -> _Blocks:
    name = str(weight.name)
    if name not in made:
        codes, scales, zeros = blocks_of(matrix, bits)
        parts = {"codes": _packed(codes, bits), "scales": scales, "zeros": _packed(zeros, bits)}
        values = {part: _initializer(graph, f"{name}_{part}", array) for part, array in parts.items()}
        made[name] = _Blocks(**values, bits=bits, shape=(matrix.shape[0], matrix.shape[1]))
    return made[name]


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _put(graph: ir.Graph, node: ir.Node, new: list[ir.Node]) -> None:
    """New nodes in the place of one, whose output the last of them gives."""
    old, output = node.outputs[0], new[-1].outputs[0]
    output.name, output.type, output.shape = old.name, old.type, old.shape
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _source(value: ir.Value | None) -> ir.Value | None:
    """What a value is before it was only reshaped."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Reshape":
        value = node.inputs[0]
    return value


def _matrix(value: ir.Value | None) -> np.ndarray | None:
    """A constant's numbers; None of what is computed."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _product_before(value: ir.Value) -> ir.Node:
    """The output head: the last product before the logits, whatever caps them."""
    node = value.producer()
    while node is not None and node.op_type != "MatMul":
        node = next(one.producer() for one in node.inputs if one is not None and one.producer() is not None)
    assert node is not None
    return node
