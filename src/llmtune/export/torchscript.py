"""`torchscript`: one file that C++ runs, the merged model in float32 with its keys and values."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmtune.export.companions import write_companions
from llmtune.export.format import ExportContext, ExportFormat, ExportSubject
from llmtune.export.graphs.cached_step import CachedStep, cache_shape, input_names, sample_inputs, why_not
from llmtune.export.merge import load_merged
from llmtune.export.report import Bounds
from llmtune.models.load import num_weights

MODEL_FILE = "model.ts"
SAME_OPERATIONS = Bounds(
    why="the file holds the model's own float32 operations, run by the same library; only the order in which sums are "
    "added up may differ",
    logits=1e-4,
    largest_kl=1e-6,
)
"""Bounds of what torch itself writes and runs."""
GRAPH_BYTES = 48 * 2**20
"""Room for a graph and a tokenizer."""


class TorchScriptFormat(ExportFormat):
    """A traced module; what it takes and gives is `graphs.cached_step`'s, and `empty_past(input_ids)` starts a text."""

    name = "torchscript"
    runtime = "torchscript"
    packages = "torch tokenizers jinja2"
    note = (
        "torch calls TorchScript deprecated and mends it no more: choose it for C++ programs that use libtorch, and "
        "torch_export for Python. Token ids (run.py --ids) need torch alone."
    )

    def why_not(self, subject: ExportSubject) -> str | None:
        """Whether the model can be one function."""
        return why_not(subject.config)

    def num_bytes(self, context: ExportContext) -> int:
        """Float32 weights, twice while the file is copied without its source paths."""
        return 2 * 4 * num_weights(context.source) + GRAPH_BYTES

    def write(self, context: ExportContext, folder: Path) -> None:
        """Trace the merged model; batch, length and past stay free."""
        model = load_merged(context).cpu()
        write_traced(model, folder / MODEL_FILE)
        write_companions(context, model, folder)

    def runtime_options(self, context: ExportContext) -> dict[str, Any]:
        """Where the trained model was asked."""
        return {"device": str(context.float32_device)}

    def bounds(self, context: ExportContext) -> Bounds:
        """The same arithmetic in the same library."""
        del context
        return SAME_OPERATIONS


class _StepFromNothing(CachedStep):
    """`CachedStep` that also gives the past to begin with, so that a C++ program need not know the model's shape."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._shape = cache_shape(model)

    def empty_past(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Keys and values before the first token, one tensor for each `past_key_values` of `forward`.

        Args:
            input_ids: int64 [B, S]; the batch and the device are taken from it.
        """
        layers, heads, size = self._shape
        return tuple(
            torch.zeros((input_ids.shape[0], heads, 0, size), device=input_ids.device) for _ in range(2 * layers)
        )


def write_traced(model: PreTrainedModel, file: Path) -> None:
    """Trace a float32 model on the CPU and save it."""
    step = _StepFromNothing(model.requires_grad_(False)).eval()
    inputs = sample_inputs(model)
    draft = file.with_suffix(".draft")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecated, and a note for every shape that Python sees; the check compares
        traced: Any = torch.jit.trace_module(
            step, {"forward": inputs, "empty_past": inputs[0]}, check_trace=False, strict=False
        )
        for graph in (traced.forward.graph, traced.empty_past.graph):
            torch._C._jit_pass_inline(graph)
            _follow_input_device(graph)
            torch._C._jit_pass_dce(graph)
        _name_inputs(traced.forward.graph, input_names(cache_shape(model)[0]))
        torch.jit.save(traced, str(draft))
    _copy_without_paths(draft, file)
    draft.unlink()


def _follow_input_device(graph: Any) -> None:
    """Tracing writes down the device that it saw; let every operation take the first input's instead."""
    first = list(graph.inputs())[1]  # after the module itself
    device = graph.create("prim::device", [first], 1)
    device.output().setType(torch._C.DeviceObjType.get())
    graph.prependNode(device)
    for constant in graph.findAllNodes("prim::Constant"):
        if constant.output().type().kind() == "DeviceObjType":
            constant.output().replaceAllUsesWith(device.output())


def _name_inputs(graph: Any, names: Sequence[str]) -> None:
    """Give the inputs the names of `cached_step`, dots as underscores; else they have those of Python's variables."""
    for value, name in zip(list(graph.inputs())[1:], names, strict=True):
        value.setDebugName(name.replace(".", "_"))


def _copy_without_paths(source: Path, target: Path) -> None:
    """Copy the archive without the notes on which line of which file on this machine each operation came from."""
    with ZipFile(source) as old, ZipFile(target, "w") as new:
        names = [name for name in old.namelist() if not name.endswith(".debug_pkl")]
        for name in names:
            with old.open(name) as data, new.open(ZipInfo(name), "w", force_zip64=True) as copy:
                shutil.copyfileobj(data, copy, 2**20)
