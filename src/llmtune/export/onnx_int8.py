"""`onnx_int8`: the ONNX graph with weights in 8 bits, a quarter of the size."""

from typing import TYPE_CHECKING

from llmtune.export.format import ExportContext
from llmtune.export.onnx import OnnxFormat
from llmtune.export.report import Bounds

if TYPE_CHECKING:
    import onnx_ir


class OnnxInt8Format(OnnxFormat):
    """Every matrix in 8 bits, the embedding as well.

    Blocks of 32 with a scale each, not onnxruntime's dynamic quantisation: on SmolLM2-135M-Instruct that costs 0.6 to
    0.7 nats per token, and blocks 0.01.
    """

    name = "onnx_int8"
    file_name = "model_quantized.onnx"
    js_type = "q8"
    is_quantised = True
    bytes_a_weight = 1.25  # a byte, and a scale and a zero point for each 32

    def change(self, graph: "onnx_ir.Model") -> None:
        """Round the weights."""
        from llmtune.export.graphs.onnx_blocks import Widths, quantise

        quantise(graph, Widths(layers=8, ends=8, delicate=8))

    def bounds(self, context: ExportContext) -> Bounds:
        """What rounding to 8 bits costs."""
        del context
        return Bounds(
            why="about twice what SmolLM2-135M-Instruct lost on 24 pieces of 96 tokens of docstrings and package "
            "descriptions (mean KL 0.023, loss +0.011); on 24 others it lost less (0.007, +0.006)",
            mean_kl=0.05,
            loss_rise=0.025,
        )
