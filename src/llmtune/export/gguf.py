"""`gguf`: one file for llama.cpp and Ollama, weights in 16 bits."""

from pathlib import Path
from typing import Any

import gguf

from llmtune.export.companions import true_generation_config
from llmtune.export.format import ExportContext, ExportFormat, ExportSubject
from llmtune.export.gguf_files import architecture, reader, vocabulary
from llmtune.export.gguf_files.metadata import add_metadata
from llmtune.export.gguf_files.modelfile import modelfile
from llmtune.export.gguf_files.quantise import has_llama_cpp
from llmtune.export.gguf_files.tensors import stored_tensors, write_tensors
from llmtune.export.merge import load_merged
from llmtune.export.report import Bounds
from llmtune.models.load import num_weights
from llmtune.models.source import max_positions, own_vocab_size

MODELFILE = "Modelfile"
_VOCABULARY_BYTES = 32 * 2**20
_CONTEXT = 4096


class GgufFormat(ExportFormat):
    """The GGUF file with tokenizer and chat template inside, and a Modelfile for Ollama."""

    name = "gguf"
    runtime = "gguf"
    packages = "llama-cpp-python"
    library = "gguf"
    file_name = "model-f16.gguf"
    kind = gguf.GGMLQuantizationType.F16
    """Type of the matrices."""
    file_type = gguf.LlamaFileType.MOSTLY_F16
    bytes_a_weight = 2.0
    """On disk while it is written."""

    def why_not(self, subject: ExportSubject) -> str | None:
        """What llama.cpp doesn't compute or encode as it was trained, and what it takes to check the file."""
        reason = architecture.why_not(subject.config)
        if reason is not None:
            return reason
        rows = max(own_vocab_size(subject.source), subject.source.vocabulary.num_rows)
        reason = vocabulary.why_not(subject.tokenizer, rows, len(subject.end_token_ids))
        if reason is None and not has_llama_cpp() and not reader.can_read(architecture.architecture_of(subject.config)):
            return "is checked in llama.cpp for this architecture; `pip install llama-cpp-python`"
        return reason

    @property
    def note(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # it depends on what is installed
        """Whether the file was tried in llama.cpp."""
        if has_llama_cpp():
            return ""
        return (
            "llama.cpp wasn't there to try the file in (`pip install llama-cpp-python`): it was read back by "
            "transformers, and compared so."
        )

    @property
    def judge(self) -> str:
        """The module whose `Runtime` is asked: the export's own, or transformers' reader without llama.cpp."""
        return "runtime" if has_llama_cpp() else reader.__name__

    @property
    def runtime_words(self) -> str:
        """What it was asked in."""
        return f"{self.name} in {'llama.cpp' if has_llama_cpp() else 'transformers, read back to float32'}"

    def num_bytes(self, context: ExportContext) -> int:
        """The weights by number, and room for the vocabulary."""
        return int(num_weights(context.source) * self.bytes_a_weight) + _VOCABULARY_BYTES

    def write(self, context: ExportContext, folder: Path) -> None:
        """Merge, write the file tensor by tensor, and the Modelfile beside it."""
        self.write_file(context, folder, folder / self.file_name)

    def write_file(self, context: ExportContext, folder: Path, target: Path) -> None:
        """Write the GGUF file to `target`, and to `folder` the Modelfile that names the format's own."""
        model = load_merged(context)
        settings = true_generation_config(model, context)
        ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        own = architecture.architecture_of(model.config)
        embeddings: Any = model.get_input_embeddings()
        words = vocabulary.read_vocabulary(context.tokenizer, len(embeddings.weight), [int(token) for token in ends])
        writer = gguf.GGUFWriter(target, own.name)
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(context.facts.title)
        writer.add_file_type(self.file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_metadata(writer, model.config, own)
        vocabulary.add_vocabulary(writer, words)
        write_tensors(writer, list(stored_tensors(model, self.kind)))
        content = modelfile(
            self.file_name,
            context.tokenizer,
            words.ends,
            max_positions(context.source),
            adds_bos=words.adds_bos,
        )
        (folder / MODELFILE).write_text(content, encoding="utf-8")

    def bounds(self, context: ExportContext) -> Bounds:
        """What rounding weights, and in llama.cpp what they are multiplied with, to 16 bits costs."""
        del context
        return Bounds(
            why="weights of 11 bits, which llama.cpp multiplies with numbers of 11 bits: by SmolLM2-135M-Instruct on "
            "4,096 tokens of Python's reference a mean KL of 5e-6 nats, a loss within 1e-4 and 0.24 % of the largest "
            "logit; by random models of all architectures a mean KL of 3e-5 at most. Ten times that is more than "
            "rounding",
            mean_kl=3e-4,
            loss_rise=2e-3,
        )

    def loading_code(self, context: ExportContext) -> str:
        """llama.cpp's Python package."""
        room = min(max_positions(context.source) or _CONTEXT, _CONTEXT)
        lines = ["from llama_cpp import Llama", "", f'model = Llama("FOLDER/{self.file_name}", n_ctx={room})']
        if context.tokenizer.chat_template:
            lines.append('answer = model.create_chat_completion([{"role": "user", "content": "What can you do?"}])')
        else:
            lines.append('answer = model("Once upon a time", max_tokens=100)')
        return "\n".join(lines)
