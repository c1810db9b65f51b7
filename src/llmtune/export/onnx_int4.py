"""`onnx_int4`: the ONNX graph with the layers' weights in 4 bits, embedding and output head in 8."""

from typing import TYPE_CHECKING

from llmtune.export.format import ExportContext
from llmtune.export.onnx import OnnxFormat
from llmtune.export.report import Bounds

if TYPE_CHECKING:
    import onnx_ir


class OnnxInt4Format(OnnxFormat):
    """The smallest graph; embedding and head, which 4 bits hurt most, have 8."""

    name = "onnx_int4"
    file_name = "model_q4.onnx"
    js_type = "q4"
    is_quantised = True
    bytes_a_weight = 1.25  # as if all had 8 bits: how much of a model is embedding differs

    def change(self, graph: "onnx_ir.Model") -> None:
        """Round the weights."""
        from llmtune.export.graphs.onnx_blocks import Widths, quantise

        quantise(graph, Widths(layers=4, ends=8))

    def bounds(self, context: ExportContext) -> Bounds:
        """What rounding to 4 bits costs."""
        del context
        return Bounds(why="TODO", mean_kl=0.2, loss_rise=0.2)
