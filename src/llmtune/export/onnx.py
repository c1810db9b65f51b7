"""`onnx`: one graph with its key-value cache for onnxruntime, in Python, a browser, C++ or C#.

A folder of the ONNX formats, as optimum, transformers.js, onnxruntime-genai and onnxruntime-web read it:

    onnx/model.onnx            `onnx`; `onnx/model_quantized.onnx` for `onnx_int8`, `onnx/model_q4.onnx` for `onnx_int4`
    onnx/model.onnx_data       the weights, only where they take more than 1.9 GB; in the graph's own file otherwise
    genai_config.json          for onnxruntime-genai
    config.json and tokenizer  as transformers writes them; `transformers.js_config` in it names the graph's type

Inputs are `input_ids`, `attention_mask`, `position_ids` and `past_key_values.<layer>.key` and `.value`, of length 0 for
a new text; outputs are `logits` and `present.<layer>.key` and `.value`.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from llmtune.export.companions import write_companions
from llmtune.export.format import ExportContext, ExportFormat, ExportSubject
from llmtune.export.graphs.cached_step import cache_shape, why_not
from llmtune.export.merge import load_merged
from llmtune.export.report import Bounds
from llmtune.models.load import num_weights

if TYPE_CHECKING:
    import onnx_ir

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_COMPANION_BYTES = 64 * 2**20
"""Room for the graph itself and the tokenizer."""
_GENAI_TYPES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Models that onnxruntime-genai knows by name; it runs any other as a plain `decoder`."""


class OnnxFormat(ExportFormat):
    """The merged model in float32."""

    name = "onnx"
    runtime = "onnx"
    packages = "onnxruntime numpy tokenizers jinja2"
    library = "onnx"
    file_name = "model.onnx"
    js_type = "fp32"
    """What transformers.js calls the graph's type; it finds the file by it."""
    bytes_a_weight = 4.0

    def why_not(self, subject: ExportSubject) -> str | None:
        """What is missing to write it, or why the model isn't one function."""
        missing = [name for name in _PACKAGES if find_spec(name) is None]
        if missing:
            return f"needs {' and '.join(missing)}; `pip install {' '.join(missing)}`"
        reason = why_not(subject.config)
        return reason and f"{reason}; choose export.formats=[hf]"

    def num_bytes(self, context: ExportContext) -> int:
        """The weights by number, and room for the rest; nothing is written on the way."""
        return int(num_weights(context.source) * self.bytes_a_weight) + _COMPANION_BYTES

    def write(self, context: ExportContext, folder: Path) -> None:
        """Merge, trace, and write the graph with what its readers look for beside it."""
        from llmtune.export.graphs.onnx_graph import is_single_file, save_graph, step_graph

        model = load_merged(context).cpu()
        write_companions(context, model, folder)
        graph = step_graph(model)
        self.change(graph)
        (folder / "onnx").mkdir()
        save_graph(graph, folder / "onnx" / self.file_name)
        _tell_transformers_js(folder / CONFIG_NAME, self.js_type, single=is_single_file(graph))
        genai = genai_config(model, _read(folder / GENERATION_CONFIG_NAME), f"onnx/{self.file_name}")
        _write(folder / "genai_config.json", genai)

    def change(self, graph: "onnx_ir.Model") -> None:
        """What a quantised format does to the float32 graph."""
        del graph

    def bounds(self, context: ExportContext) -> Bounds:
        """Rounding of float32 alone."""
        del context
        return Bounds(
            why="the graph holds the model's own float32 weights and operations; onnxruntime only adds up in another "
            "order",
            logits=1e-4,
            largest_kl=1e-6,
        )

    def loading_code(self, context: ExportContext) -> str:
        """In Python beside its scripts, and in JavaScript."""
        del context
        return (
            "import sys\nfrom pathlib import Path\n\n"
            'sys.path.insert(0, "FOLDER")\n'
            "from runtime import Runtime\n\n"
            'model = Runtime(Path("FOLDER"))\n'
            'ids = model.text.encode("...")\n'
            "logits = model.start([ids], [[1] * len(ids)])"
        )


def genai_config(model: PreTrainedModel, generation: dict[str, Any], file: str) -> dict[str, Any]:
    """What onnxruntime-genai reads of a model.

    Args:
        model: the merged model.
        generation: its `generation_config.json`.
        file: the graph, seen from the folder.
    """
    config: PreTrainedConfig = model.config.get_text_config()
    ends = generation["eos_token_id"]
    length = getattr(config, "max_position_embeddings", None) or 2048
    return {
        "model": {
            "type": config.model_type if config.model_type in _GENAI_TYPES else "decoder",
            "vocab_size": config.vocab_size,
            "context_length": length,
            "bos_token_id": generation.get("bos_token_id") or _first(ends),
            "eos_token_id": ends,
            "pad_token_id": _first(generation.get("pad_token_id", ends)),
            "decoder": _genai_decoder(model, file),
        },
        "search": {
            "do_sample": bool(generation.get("do_sample", False)),
            "temperature": generation.get("temperature") or 1.0,
            "top_k": generation.get("top_k") or 50,
            "top_p": generation.get("top_p") or 1.0,
            "repetition_penalty": generation.get("repetition_penalty") or 1.0,
            "max_length": length,
            "past_present_share_buffer": False,
        },
    }


def _genai_decoder(model: PreTrainedModel, file: str) -> dict[str, Any]:
    """The graph's shape, and what its inputs and outputs are called."""
    layers, heads, size = cache_shape(model)
    config: PreTrainedConfig = model.config.get_text_config()
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": file,
        "head_size": size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "inputs": {
            **{name: name for name in ("input_ids", "attention_mask", "position_ids")},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _tell_transformers_js(file: Path, js_type: str, *, single: bool) -> None:
    config = _read(file)
    own = {"dtype": js_type} | ({} if single else {"use_external_data_format": True})
    _write(file, {**config, "transformers.js_config": own})


def _first(value: Any) -> int:
    return value[0] if isinstance(value, list) else value


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
