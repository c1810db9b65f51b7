"""`gguf_q8_0`: one file for llama.cpp and Ollama, weights in 8 bits with a scale for each 32."""

import gguf

from llmtune.export.format import ExportContext
from llmtune.export.gguf import GgufFormat
from llmtune.export.report import Bounds


class GgufQ80Format(GgufFormat):
    """Half the size of 16 bits, and hardly worse."""

    name = "gguf_q8_0"
    is_quantised = True
    file_name = "model-q8_0.gguf"
    kind = gguf.GGMLQuantizationType.Q8_0
    file_type = gguf.LlamaFileType.MOSTLY_Q8_0
    bytes_a_weight = 34 / 32

    def bounds(self, context: ExportContext) -> Bounds:
        """What rounding to 8 bits costs."""
        del context
        return Bounds(
            why="weights of 8 bits with a scale for each 32, which llama.cpp multiplies with numbers of 8 bits: by "
            "SmolLM2-135M-Instruct on 4,096 tokens of Python's reference a mean KL of 5e-3 nats and a loss 3e-3 "
            "higher, by rounded weights alone 1e-3 and a loss 5e-4 lower. Five times as much is more than rounding",
            mean_kl=0.025,
            loss_rise=0.015,
        )
