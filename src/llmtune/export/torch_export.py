"""`torch_export`: the graph of torch.export in a `.pt2` file, the merged model in float32 with its keys and values."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim
from torch.fx import GraphModule
from transformers import PreTrainedModel

from llmtune.export.companions import write_companions
from llmtune.export.format import ExportContext, ExportFormat, ExportSubject
from llmtune.export.graphs.cached_step import CachedStep, sample_inputs, why_not
from llmtune.export.merge import load_merged
from llmtune.export.report import Bounds
from llmtune.export.torchscript import GRAPH_BYTES, SAME_OPERATIONS
from llmtune.models.load import num_weights

MODEL_FILE = "model.pt2"


class TorchExportFormat(ExportFormat):
    """An exported program; what it takes and gives is `graphs.cached_step`'s."""

    name = "torch_export"
    runtime = "torch_export"
    packages = "torch tokenizers jinja2"
    note = (
        "For torch alone (run.py --ids needs nothing else) and its compilers; the version of torch that wrote it reads "
        "it best."
    )

    def why_not(self, subject: ExportSubject) -> str | None:
        """Whether the model can be one function."""
        return why_not(subject.config)

    def num_bytes(self, context: ExportContext) -> int:
        """Float32 weights and a graph."""
        return 4 * num_weights(context.source) + GRAPH_BYTES

    def write(self, context: ExportContext, folder: Path) -> None:
        """Export the merged model; batch, length and past stay free."""
        model = load_merged(context).cpu()
        write_exported(model, folder / MODEL_FILE)
        write_companions(context, model, folder)

    def runtime_options(self, context: ExportContext) -> dict[str, Any]:
        """Where the trained model was asked."""
        return {"device": str(context.float32_device)}

    def bounds(self, context: ExportContext) -> Bounds:
        """The same arithmetic in the same library."""
        del context
        return SAME_OPERATIONS


def write_exported(model: PreTrainedModel, file: Path) -> None:
    """Export a float32 model on the CPU and save it."""
    step = CachedStep(model.requires_grad_(False)).eval()
    inputs = sample_inputs(model)
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    past = tuple({0: Dim.DYNAMIC, 2: Dim.DYNAMIC} for _ in inputs[3:])
    with warnings.catch_warnings(), torch.no_grad():  # without gradients nothing switches them off inside the graph
        warnings.simplefilter("ignore")
        program = torch.export.export(step, inputs, dynamic_shapes=(free, free, free, past), strict=False)
        for graph in program.graph_module.modules():
            if isinstance(graph, GraphModule):
                _forget_paths(graph)
        program.example_inputs = None  # they would be a pickle in the file
        torch.export.save(program, file)


def _forget_paths(graph: GraphModule) -> None:
    """Drop the notes on which line of which file on this machine each operation came from."""
    for node in graph.graph.nodes:
        node.meta.pop("stack_trace", None)
